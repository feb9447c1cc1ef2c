"""`deltaw study`: train the contrasting runs for real, then compare them. Needs the extra `deltaw[study]`.

`run` carries out a plan; `SpectrumCallback` measures anyone's own training. Both load when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltaw.study.callback import SpectrumCallback as SpectrumCallback
    from deltaw.study.costs import PlanCost as PlanCost
    from deltaw.study.costs import estimate as estimate
    from deltaw.study.plan import PRESETS as PRESETS
    from deltaw.study.plan import StudyPlan as StudyPlan
    from deltaw.study.plan import customised as customised
    from deltaw.study.plan import load_plan as load_plan
    from deltaw.study.runner import Study as Study
    from deltaw.study.runner import run as run

_WHERE = {
    "PRESETS": "plan",
    "PlanCost": "costs",
    "StudyPlan": "plan",
    "SpectrumCallback": "callback",
    "Study": "runner",
    "customised": "plan",
    "estimate": "costs",
    "load_plan": "plan",
    "run": "runner",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'deltaw.study' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deltaw.study.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
