from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from deltaw.documents import parse_toml
from deltaw.errors import OptionError
from deltaw.study.plan import PRESETS, Arm, StudyPlan, Training, customised, load_plan
from deltaw.study.strict import build

MINIMAL = """
title = "t"
[source]
name = "s"
corpus = "docstrings"
[[targets]]
name = "c"
corpus = "code"
[[arms]]
name = "full"
method = "full"
learning_rates = [1e-3, 3]
"""


def load(tmp_path: Path, text: str) -> StudyPlan:
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return load_plan(path)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_every_kind_of_arm(name: str) -> None:
    plan = load_plan(name)
    by_method = {m: [a for a in plan.arms if a.method == m] for m in ("full", "lora", "mora")}
    assert len({a.weight_decay for a in by_method["full"]} - {0.0}) == 2
    assert len({a.attention_dropout for a in by_method["full"]} - {0.0}) == 2
    assert len(by_method["lora"]) == 3
    assert all(a.lora_alpha == 2 * (a.rank or 0) and a.dropout == 0.05 for a in by_method["lora"])
    assert {a.mora_type for a in by_method["mora"]} == {1, 6}
    assert all(len(a.learning_rates) >= 2 for a in plan.arms)
    assert {t.regime for t in plan.targets} == {"pretraining", "instruction"}
    assert len(plan.seeds) >= 2


def test_presets_say_no_more_than_they_mean() -> None:
    for name in PRESETS:
        table = tomllib.loads(files("deltaw.study").joinpath(f"{name}.toml").read_text(encoding="utf-8"))
        ranks = [a["rank"] for a in table["arms"] if a["method"] == "lora"]
        assert max(ranks) <= table["base"]["hidden"]  # a rank beyond the width is full rank


def test_a_minimal_plan(tmp_path: Path) -> None:
    plan = load(tmp_path, MINIMAL)
    assert plan.arms == (Arm("full", "full", (1e-3, 3.0)),)
    names = [r.name for r in plan.runs()]
    assert names == ["c-full-lr0.001-s0", "c-full-lr3-s0", "c-full-lr0.001-s1", "c-full-lr3-s1"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "t"', 'titel = "t"', r"plan\.toml:2: titel: unknown key 'titel'. Did you mean 'title'\?"),
        ('title = "t"', "title = 3", "title: expected a text, found 3"),
        ('title = "t"', "", "'title' is missing"),
        ('title = "t"', 'title = "t"\nseeds = 3', "seeds: expected a list, found 3"),
        ('title = "t"', 'title = "t"\nseeds = [0, true]', "item 2: expected a whole number, found true"),
        ('title = "t"', 'title = "t', "not valid TOML"),
        ('corpus = "code"', 'corpus = "cod"', "corpus = 'cod': expected one of docstrings, code"),
        ('corpus = "code"', 'corpus = "files"', "domain 'c': `files` goes with"),
        ('name = "c"', 'name = "s"', "domains of the same name: s"),
        ('name = "c"', 'name = "../c"', "domain '../c': a name is made of"),
        ('method = "full"', 'method = "fulll"', "method = 'fulll': expected one of full, lora"),
        ('method = "full"', 'method = "lora"', "needs a rank"),
        ('method = "full"', 'method = "peft"', "needs options.peft_type"),
        ("[1e-3, 3]", "[]", "learning_rates is empty"),
        ("[1e-3, 3]", "[1e-3, 0.001]", "runs of the same name"),
        ("[1e-3, 3]", '["high"]', 'expected a number, found "high"'),
        ("[[targets]]", "[targets]", "targets: expected a list"),
        (
            "[source]",
            "[training]\nlenght = 3\n[source]",
            r"training, lenght: unknown key 'lenght'. Did you mean 'length'",
        ),
        ("[source]", "[training]\npoints = 0\n[source]", "points = 0: expected 1 to"),
        ("[source]", "[base]\nmodel = 3\n[source]", "model: expected a text"),
    ],
)
def test_a_bad_plan_is_one_clear_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    with pytest.raises(OptionError, match=message) as caught:
        load(tmp_path, MINIMAL.replace(old, new))
    assert "\n" not in str(caught.value)


def test_a_target_may_have_arms_of_its_own(tmp_path: Path) -> None:
    text = MINIMAL + '[[arms]]\nname = "other"\nmethod = "full"\nlearning_rates = [1]\n'
    text += '[[targets]]\nname = "d"\ncorpus = "code"\narms = ["other"]\n'
    names = [r.name for r in load(tmp_path, text).runs()]
    assert [n for n in names if n.startswith("d-")] == ["d-other-lr1-s0", "d-other-lr1-s1"]
    assert len(names) == 8
    with pytest.raises(OptionError, match="no arm is named othre; expected some of full, other"):
        load(tmp_path, text.replace('arms = ["other"]', 'arms = ["othre"]'))


def test_a_plan_is_read_without_the_libraries_that_train() -> None:
    code = (
        "import sys, deltaw.study, deltaw.study.plan as p, deltaw.cli.study; p.load_plan('quick');"
        "print({'torch', 'transformers', 'peft', 'pandas'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_no_such_plan(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected quick, standard, gpu or a TOML file"):
        load_plan(tmp_path / "absent.toml")


def test_saved_steps_end_with_the_last() -> None:
    assert Training(steps=120, points=3).saved_steps == (40, 80, 120)
    assert Training(steps=10, points=4).saved_steps == (2, 5, 8, 10)
    assert Training(steps=3, points=3).saved_steps == (1, 2, 3)


def test_customised_plans() -> None:
    plan = load_plan("quick")
    own = customised(plan, source=("a.txt",), target=("b.jsonl", "c.jsonl"), base="some/model", seeds=3)
    assert own.source.files == ("a.txt",)
    assert (own.targets[0].regime, own.targets[0].files) == ("instruction", ("b.jsonl", "c.jsonl"))
    assert (own.base.model, own.seeds) == ("some/model", (0, 1, 2))
    assert customised(plan, target=("b.txt", "c.jsonl")).targets[0].regime == "pretraining"
    assert customised(plan) == plan


@dataclasses.dataclass(frozen=True)
class Both:
    x: float
    n: int = 0


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Both


def test_strict_takes_whole_numbers_for_numbers_and_not_the_reverse() -> None:
    def read(text: str) -> Outer:
        return build(Outer, parse_toml(text, "t", error=OptionError))

    assert read("[inner]\nx = 2") == Outer(Both(2.0))
    with pytest.raises(OptionError, match=r"^t:3: inner, n: expected a whole number, found 2\.5"):
        read("[inner]\nx = 2\nn = 2.5")
    with pytest.raises(OptionError, match="t:1: inner: expected a table, found 3"):
        read("inner = 3")
