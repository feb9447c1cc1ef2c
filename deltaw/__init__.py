"""What fine-tuning did to the weights: per-layer ΔW, its rank, its noise, and what it costs in forgetting.

    import deltaw

    result = deltaw.analyze("base", "ft")
    result.to_pandas()
    result.report("report.html")

Everything here is loaded when it is first used: `import deltaw` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from deltaw import metrics as metrics
    from deltaw import study as study
    from deltaw.activations import Activations as Activations
    from deltaw.activations import collect_activations as collect_activations
    from deltaw.comparison import Comparison as Comparison
    from deltaw.comparison import compare as compare
    from deltaw.edits import Edited as Edited
    from deltaw.edits import Extraction as Extraction
    from deltaw.edits import edit as edit
    from deltaw.edits import extract as extract
    from deltaw.edits import resize as resize
    from deltaw.errors import DeltaWError as DeltaWError
    from deltaw.measurement.gathering import gather as gather
    from deltaw.measurement.inspection import Inspection as Inspection
    from deltaw.measurement.inspection import inspect as inspect
    from deltaw.measurement.loop import Progress as Progress
    from deltaw.measurement.run import analyze as analyze
    from deltaw.measurement.vocabulary import directions as directions
    from deltaw.monitoring import Alert as Alert
    from deltaw.monitoring import Monitor as Monitor
    from deltaw.results.analysis import Analysis as Analysis
    from deltaw.results.analysis import load as load
    from deltaw.surveys import Survey as Survey
    from deltaw.surveys import survey as survey
    from deltaw.types import Interval as Interval
    from deltaw.types import Skipped as Skipped
    from deltaw.types import Spectrum as Spectrum
    from deltaw.verification import Prediction as Prediction
    from deltaw.verification import Verification as Verification
    from deltaw.verification import predict as predict
    from deltaw.verification import verify as verify

_WHERE = {
    "Activations": "activations",
    "Alert": "monitoring",
    "Analysis": "results.analysis",
    "Comparison": "comparison",
    "DeltaWError": "errors",
    "Edited": "edits",
    "Extraction": "edits",
    "Inspection": "measurement.inspection",
    "Interval": "types",
    "Monitor": "monitoring",
    "Prediction": "verification",
    "Progress": "measurement.loop",
    "Skipped": "types",
    "Spectrum": "types",
    "Survey": "surveys",
    "Verification": "verification",
    "analyze": "measurement.run",
    "collect_activations": "activations",
    "compare": "comparison",
    "directions": "measurement.vocabulary",
    "edit": "edits",
    "extract": "edits",
    "gather": "measurement.gathering",
    "inspect": "measurement.inspection",
    "load": "results.analysis",
    "predict": "verification",
    "resize": "edits",
    "survey": "surveys",
    "verify": "verification",
}
_MODULES = ("metrics", "study")

__all__ = sorted(("__version__", *_WHERE, *_MODULES))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("deltaw")
    if name in _MODULES:
        return importlib.import_module(f"deltaw.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'deltaw' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"deltaw.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
