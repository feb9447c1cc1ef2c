"""A survey from end to end: planted tasks are found, copies are, every method takes part, what is broken is a row."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import deltaw
from benchmarks.many_adapters import adjusted_rand, task_factors, write_adapter
from deltaw.cli import main
from deltaw.errors import CheckpointError, OptionError, ResultsError, UnknownNameError
from deltaw.surveys import run
from tests.adapters.conftest import make, tiny_llama
from tests.surveys.conftest import SMALL, TINY, cosine, dense

CONTRACT = ["name", "rank", "matrices", "fro_norm", "relative_change", "effective_rank", "energy_at_1",
            "factor_balance", "cluster", "nearest", "nearest_cosine", "flags"]  # fmt: skip
PAIRS = ["a", "b", "cosine", "cosine_low", "cosine_high", "overlap", "sign_disagreement", "energy_ratio"]


def refactored(folder: Path, to: Path, scale: float = 1.0) -> Path:
    """The same update as (B·M, M⁻¹·A), at another size."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "adapter_model.safetensors")
    g = torch.Generator().manual_seed(0)
    for name in [n for n in tensors if "lora_A" in n]:
        other = name.replace("lora_A", "lora_B")
        r = tensors[name].shape[0]
        M = torch.randn(r, r, generator=g).double() + 2 * torch.eye(r).double()
        tensors[name] = (torch.linalg.inv(M) @ tensors[name].double()).float()
        tensors[other] = (scale * tensors[other].double() @ M).float()
    save_file(tensors, to / "adapter_model.safetensors")
    return to


def test_planted_tasks_and_copies_are_found(tiny_base: Path, tmp_path: Path):
    """6 tasks × 5 seeds × 10 learning rates, seeds alike at .8 of each factor; and 12 copies of some, other in size."""
    folder = tmp_path / "planted"
    for i in range(300):
        task, rest = divmod(i, 50)
        seed, rate = divmod(rest, 10)
        factors = task_factors(TINY, task, 100 * rate + seed, rank=2, size=1.6**rate)
        write_adapter(folder / f"t{task}s{seed}r{rate}", factors)
    names = sorted(p.name for p in folder.iterdir())
    for k in range(12):
        refactored(folder / names[25 * k], folder / f"copy-{names[25 * k]}", (1.0, 0.5, 3.0)[k % 3])
    survey = deltaw.survey(tiny_base, folder)
    frame = survey.adapters()
    task = frame["name"].str.extract(r"t(\d)s")[0].astype(int).to_numpy()
    assert adjusted_rand(task, frame["cluster"].to_numpy().astype(int)) >= 0.95
    assert survey.about.compared == "sketched"
    copied = frame[frame["name"].str.startswith("copy-")]
    assert len(copied) == 12
    expected = {*copied["name"], *copied["name"].str.removeprefix("copy-")}
    assert set(frame[frame["flags"].str.contains("duplicate")]["name"]) == expected
    assert (copied["nearest"] == copied["name"].str.removeprefix("copy-")).all()
    pairs = survey.pairs()
    assert list(pairs.columns[:8]) == PAIRS
    assert len(pairs) <= 5 * len(frame)
    assert pairs["exact"].all()
    known = {frozenset(p) for p in zip(pairs["a"], pairs["b"], strict=True)}
    assert all(frozenset(p) in known for p in zip(frame["name"], frame["nearest"], strict=True))
    near = survey.nearest("t0s0r0", 20)
    assert len(near) == 20
    assert near["name"][0] == "copy-t0s0r0"
    assert near["name"].str.startswith(("t0", "copy-t0")).all()
    assert (near["cosine_high"] > near["cosine_low"]).any()  # estimates, behind those that were looked at


def test_exact_pairs_are_those_of_dense_float64(tiny: Callable[..., Path], tiny_base: Path, tmp_path: Path):
    """Of other ranks and modules, too."""
    planted = {}
    for i, rank in enumerate((1, 2, 4, 8)):
        factors = task_factors(TINY, i // 2, i, rank=rank)
        if i == 3:
            factors = {m: f for m, f in factors.items() if "q_proj" in m or "mlp" in m}
        planted[f"r{rank}"] = dense(factors)
        write_adapter(tmp_path / "adapters" / f"r{rank}", factors)
    survey = deltaw.survey(tiny_base, tmp_path / "adapters")
    pairs = survey.pairs()
    assert len(pairs) == 6
    for row in pairs.itertuples():
        x, y = planted[row.a], planted[row.b]
        assert row.cosine == pytest.approx(cosine(x, y), abs=1e-10)
        assert row.cosine_low == row.cosine_high == row.cosine
        together = {n: x.get(n, 0) + y.get(n, 0) for n in {*x, *y}}
        squares = [sum(float(d.square().sum()) for d in z.values()) for z in (together, x, y)]
        assert row.energy_ratio == pytest.approx(squares[0] / (squares[1] + squares[2]), abs=1e-10)
        shared = [n for n in x if n in y]
        assert row.matrices == len(shared)
        energy = [sum(float(z[n].square().sum()) for n in shared) for z in (x, y)]
        assert (row.shared_a, row.shared_b) == pytest.approx((energy[0] / squares[1], energy[1] / squares[2]))
        signs = [torch.cat([z[n].flatten() for n in shared]).sign() for z in (x, y)]
        truth = float((signs[0] != signs[1]).double().mean())
        assert row.sign_disagreement_low - 0.02 <= truth <= row.sign_disagreement_high + 0.02
    kinds = survey.pairs_by_kind()
    first = kinds[(kinds["a"] == "r1") & (kinds["b"] == "r2") & (kinds["kind"] == "mlp")].iloc[0]
    mlp = [{n: d for n, d in planted[name].items() if "mlp" in n} for name in ("r1", "r2")]
    assert first["cosine"] == pytest.approx(cosine(*mlp), abs=1e-10)
    frame = survey.adapters()
    assert list(frame.columns[:12]) == CONTRACT
    assert frame["rank"].tolist() == [1, 2, 4, 8]
    size = math.sqrt(sum(float(d.square().sum()) for d in planted["r4"].values()))
    assert frame["fro_norm"][2] == pytest.approx(size, rel=1e-12)


METHODS = {
    "lora": lambda peft: peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"]),
    "rslora": lambda peft: peft.LoraConfig(r=8, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
    "dora": lambda peft: peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "up_proj"]),
    "adalora": lambda peft: peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj"]),
    "loha": lambda peft: peft.LoHaConfig(r=3, target_modules=["q_proj", "up_proj"]),
    "lokr": lambda peft: peft.LoKrConfig(r=3, target_modules=["q_proj", "down_proj"]),
}


@pytest.fixture(scope="module")
def flavours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, dict[str, torch.Tensor]]]:
    """A base, adapters of six methods and two full fine-tunes of it, and what merging each gives."""
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install deltaw[peft])")
    folder = tmp_path_factory.mktemp("flavours")
    model = tiny_llama(tie_word_embeddings=False)
    model.save_pretrained(folder / "base")
    planted = {}
    for name, config in METHODS.items():
        planted[name] = make(model, config(peft), folder / "adapters" / name)
    state = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    g = torch.Generator().manual_seed(3)
    for name, size in {"full": 0.05, "full-again": 0.1}.items():
        moved = {
            n: t.double() + size * planted["lora"][n] + 0.01 * torch.randn(t.shape, generator=g)
            for n, t in state.items()
        }
        (folder / "adapters" / name).mkdir()
        save_file({n: t.float() for n, t in moved.items()}, folder / "adapters" / name / "model.safetensors")
        planted[name] = {n: moved[n].float().double() - state[n].double() for n in state}
    return folder / "base", folder / "adapters", planted


def test_every_method_takes_part(flavours: tuple[Path, Path, dict[str, dict[str, torch.Tensor]]]):
    """Exact where both are factored, else within an interval that says something."""
    base, folder, planted = flavours
    survey = deltaw.survey(base, folder)
    frame = survey.adapters().set_index("name")
    assert survey.failed == []
    assert set(frame["method"]) == {"lora", "dora", "adalora", "loha", "lokr", "full"}
    changed = {
        name: {n: d for n, d in deltas.items() if d.ndim == 2 and d.abs().max() > 0} for name, deltas in planted.items()
    }
    within = []
    for row in survey.pairs().itertuples():
        truth = cosine(changed[row.a], changed[row.b])
        factored = {row.a, row.b} <= {"lora", "rslora", "adalora"}
        assert row.exact == factored
        if factored:
            assert row.cosine == pytest.approx(truth, abs=1e-6)  # of factors stored in float32
        else:
            within.append(row.cosine_low <= truth <= row.cosine_high)
            assert 0 < row.cosine_high - row.cosine_low < 0.7
    assert np.mean(within) >= 0.9
    for name, deltas in changed.items():
        size = math.sqrt(sum(float(d.square().sum()) for d in deltas.values()))
        assert frame["fro_norm"][name] == pytest.approx(size, rel=1e-4)
        assert frame["matrices"][name] == len(deltas)


def test_what_is_broken_is_a_row_and_the_rest_goes_on(tiny: Callable[..., Path], tiny_base: Path, tmp_path: Path):
    tiny("fine")
    tiny("also", seed=1)
    cut = tiny("cut")
    data = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(data[: len(data) // 2])
    lost = tiny("nan")
    tensors = load_file(lost / "adapter_model.safetensors")
    for t in tensors.values():
        t[0, 0] = math.nan
    save_file(tensors, lost / "adapter_model.safetensors")
    some = tiny("some-nan")
    tensors = load_file(some / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = math.inf
    save_file(tensors, some / "adapter_model.safetensors")
    full = {n: t.clone() for n, t in load_file(tiny_base / "model.safetensors").items()}
    for n, t in full.items():
        t[0] += 0.01
        t[1, 1] = math.nan if "q_proj" in n else t[1, 1]
    (tmp_path / "adapters" / "full-nan").mkdir()
    save_file(full, tmp_path / "adapters" / "full-nan" / "model.safetensors")
    out = tmp_path / "out"
    arguments = ["survey", str(tiny_base), str(tmp_path / "adapters"), "nowhere", "--out", str(out), "--no-report"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3, result.output
    assert "failed: cut: " in result.stderr
    assert "failed: nowhere: nowhere: no such" in result.stderr
    frame = deltaw.Survey.load(out).adapters().set_index("name")
    assert frame["flags"]["cut"] == "failed"
    assert frame["flags"]["nan"] == "failed diverged"
    assert frame["flags"]["some-nan"] == "diverged"
    assert frame["flags"]["full-nan"] == "diverged"
    for lost in ("some-nan", "full-nan"):
        assert frame["matrices"][lost] == frame["matrices"]["fine"] - 1
        assert f"failed: {lost}: " in result.stderr
    assert "q_proj.weight: not finite: fine-tuned: 1 NaN" in frame["notes"]["full-nan"]
    assert frame["nearest"]["fine"] in {"also", "some-nan"}
    assert math.isnan(frame["cluster"]["cut"])


def test_an_adapter_of_another_base_is_told_apart(tiny: Callable[..., Path], tiny_base: Path, tmp_path: Path):
    tiny("mine", base_model_name_or_path="org/tiny")
    tiny("mine-too", seed=1, base_model_name_or_path="other/Tiny")  # another owner's copy
    tiny("named-otherwise", seed=2, base_model_name_or_path="org/large")
    factors = task_factors(SMALL, 0, 0)
    write_adapter(tmp_path / "adapters" / "too-wide", {m: f for m, f in factors.items() if ".0." in m})
    frame = deltaw.survey(tiny_base, tmp_path / "adapters").adapters().set_index("name")
    flags = frame["flags"].to_dict()
    assert flags == {"mine": "", "mine-too": "", "named-otherwise": "other_base", "too-wide": "failed other_base"}


def test_rules_of_single_adapters(tiny: Callable[..., Path], tiny_base: Path, tmp_path: Path):
    zero = tiny("zero")
    tensors = load_file(zero / "adapter_model.safetensors")
    save_file({n: t * ("lora_B" not in n) for n, t in tensors.items()}, zero / "adapter_model.safetensors")
    half = tiny("half")
    first = next(n for n in tensors if "lora_B" in n)
    save_file(tensors | {first: tensors[first] * 0}, half / "adapter_model.safetensors")
    tiny("huge", seed=3, size=1e4)
    unscaled = tiny("unscaled", seed=4)
    config = json.loads((unscaled / "adapter_config.json").read_text())
    del config["lora_alpha"]
    (unscaled / "adapter_config.json").write_text(json.dumps(config))
    frame = deltaw.survey(tiny_base, tmp_path / "adapters").adapters().set_index("name")
    assert frame["flags"]["zero"] == "zero untrained_B"
    assert frame["flags"]["half"] == "untrained_B"
    assert frame["untrained"].to_dict() == {"zero": 7, "half": 1, "huge": 0, "unscaled": 0}
    assert frame["flags"]["huge"] == "diverged"
    assert frame["flags"]["unscaled"] == "unscaled"
    assert frame["relative_change"]["zero"] == 0
    assert math.isnan(frame["cluster"]["zero"])


def test_an_interrupted_survey_goes_on(
    tiny: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for i in range(6):
        tiny(f"a{i}", seed=i)
    adapters, out = tmp_path / "adapters", tmp_path / "out"
    looked: list[str] = []
    real = run.look

    def killed(base: object, source: str, *rest: object) -> object:
        if len(looked) == 4:
            raise KeyboardInterrupt
        looked.append(source)
        return real(base, source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "look", killed)
    with pytest.raises(KeyboardInterrupt):
        deltaw.survey(tiny_base, adapters, out=out, jobs=1)
    monkeypatch.setattr(run, "look", lambda base, source, *rest: (looked.append(source), real(base, source, *rest))[1])
    tiny("a6", seed=6)  # one more than before
    (adapters / "a0" / "adapter_config.json").write_text((adapters / "a0" / "adapter_config.json").read_text() + "\n")
    found = deltaw.survey(tiny_base, adapters, out=out)
    assert sorted(Path(s).name for s in looked[4:]) == ["a0", "a4", "a5", "a6"]  # what is new, or not what it was
    found.save(out, report=False)
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".deltaw-lock")) == [
        "adapters.csv",
        "neighbours.csv",
        "pairs.csv",
        "pairs_by_kind.csv",
        "spectra.csv",
        "survey.json",
    ]
    again = deltaw.survey(tiny_base, adapters)
    assert again.pairs().equals(found.pairs())
    assert again.adapters().equals(found.adapters())


def test_what_is_saved_is_read_back(tiny: Callable[..., Path], tiny_base: Path, tmp_path: Path):
    for i in range(3):
        tiny(f"a{i}", seed=i)
    found = deltaw.survey(tiny_base, tmp_path / "adapters", merge_check=["a0", "a2"])
    loaded = deltaw.Survey.load(found.save(tmp_path / "out", report=False))
    for name in ("adapters", "pairs", "pairs_by_kind", "neighbours", "spectra"):
        a, b = getattr(found, name)(), getattr(loaded, name)()
        assert list(a.columns) == list(b.columns)
        for column in a.columns:
            assert a[column].astype(object).where(a[column].notna(), "").astype(str).tolist() == (
                b[column].astype(object).where(b[column].notna(), "").map(_same(a[column])).tolist()
            ), (name, column)
    assert loaded.about == found.about
    assert loaded.merge == found.merge
    with pytest.raises(ResultsError, match=r"no survey\.json there"):
        deltaw.Survey.load(tmp_path / "adapters")
    with pytest.raises(ResultsError, match="holds the survey of another base"):
        deltaw.survey(None, tmp_path / "adapters", out=tmp_path / "out")


def _same(column: object) -> Callable[[object], str]:
    whole = str(getattr(column, "dtype", "")).startswith("int")
    return lambda value: str(int(value)) if whole and isinstance(value, float) else str(value)


def test_without_a_base_and_of_one_adapter(tiny: Callable[..., Path], tmp_path: Path):
    tiny("alone")
    found = deltaw.survey(None, tmp_path / "adapters")
    row = found.adapters().iloc[0]
    assert row["fro_norm"] > 0
    assert math.isnan(row["relative_change"])
    assert row["nearest"] == ""
    assert len(found.pairs()) == len(found.nearest("alone")) == 0


def test_what_cannot_be_used_is_one_error(tiny: Callable[..., Path], tiny_base: Path, tmp_path: Path):
    tiny("one")
    tiny("two", seed=1)
    with pytest.raises(OptionError, match=r"--mark: no adapter of the survey is called 'tow'. Did you mean 'two'\?"):
        deltaw.survey(tiny_base, tmp_path / "adapters", mark="tow")
    with pytest.raises(OptionError, match="at least two"):
        deltaw.survey(tiny_base, tmp_path / "adapters", merge_check=["one"])
    with pytest.raises(CheckpointError, match="no adapter can be used: none"):
        deltaw.survey(tiny_base, ["none", "nothing"])
    found = deltaw.survey(tiny_base, tmp_path / "adapters")
    with pytest.raises(UnknownNameError, match="'ones'"):
        found.nearest("ones")
    with pytest.raises(OptionError, match="count is 0"):
        found.nearest("one", 0)
    for arguments, code in ((["--merge-check", "one"], 2), (["--mark", "x"], 2)):
        done = CliRunner().invoke(main, ["survey", str(tiny_base), str(tmp_path / "adapters"), *arguments])
        assert done.exit_code == code
    assert CliRunner().invoke(main, ["survey", str(tiny_base)]).exit_code == 2


def test_single_files_take_part_and_one_without_alpha_is_unscaled(tiny_base: Path, tmp_path: Path):
    """As diffusers and kohya save them; without a base by their own names."""
    factors = task_factors(TINY, 0, 0, rank=2)
    plain, alpha = {}, {}
    for module, (B, A) in factors.items():
        plain |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
        alpha |= {f"{module}.lora_down.weight": A, f"{module}.lora_up.weight": B, f"{module}.alpha": torch.tensor(2.0)}
    save_file(plain, tmp_path / "plain.safetensors")
    save_file(alpha, tmp_path / "alpha.safetensors")
    result = CliRunner().invoke(
        main, ["survey", str(tiny_base), str(tmp_path), "--out", str(tmp_path / "out"), "--no-report", "--json"]
    )
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)["adapters"]}
    assert rows["plain"]["flags"] == "duplicate unscaled"
    assert rows["alpha"]["flags"] == "duplicate"
    alone = CliRunner().invoke(
        main, ["survey", "--no-base", str(tmp_path / "plain.safetensors"), "--out", str(tmp_path / "x"), "-q"]
    )
    assert alone.exit_code == 0, alone.output
    assert alone.stdout == ""
    assert (tmp_path / "x" / "report.html").is_file()
