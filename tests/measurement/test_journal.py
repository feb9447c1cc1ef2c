"""The journal: what a run leaves when it is cut off at any byte."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.errors import ResultsError
from deltaw.measurement import journal
from deltaw.measurement.journal import Journal, read
from deltaw.measurement.measured import Measured
from deltaw.types import Interval, IntruderCount, Reason, Skipped, Spectrum


def measured(i: int) -> Measured:
    spectrum = Spectrum(
        np.array([3.5, 1 / 3, i]), 3, 5, "estimate", 12.0 + i, {"rank_90": Interval(2.0, 1.0, 3.0)}, "why"
    )
    row = {"name": f"w{i}", "rank_90": 2.0, "layer": None, "fro_norm": float("nan")}
    return Measured(row, spectrum, intruders=(IntruderCount("w", 1, 0.5, 1, 0, 0.25),))


def same(a: Measured, b: Measured) -> bool:
    ok = repr(a.row) == repr(b.row) and a.skipped == b.skipped and a.intruders == b.intruders
    if a.spectrum is None or b.spectrum is None:
        return ok and a.spectrum is b.spectrum
    return ok and np.array_equal(a.spectrum.values, b.spectrum.values) and a.spectrum.estimates == b.spectrum.estimates


def filled(folder: Path, count: int = 5) -> Path:
    with Journal(folder, "id", inputs={"base": ["a"], "ft": ["b"]}, resume=True) as kept:
        for i in range(count):
            kept.add(f"w{i}", measured(i))
        kept.add("bad", Measured(None, skipped=Skipped("bad", Reason.FAILED, subject="NaN")))
    return kept.path


def test_round_trip(tmp_path: Path):
    filled(tmp_path)
    with Journal(tmp_path, "id", inputs={}, resume=True) as again:
        assert set(again.done) == {"w0", "w1", "w2", "w3", "w4"}
        assert all(same(again.done[f"w{i}"], measured(i)) for i in range(5))
        assert "bad" not in again.done  # tried again: it may have been a full memory, or a lost disk


def test_other_identity_and_fresh_start_over(tmp_path: Path):
    filled(tmp_path)
    with Journal(tmp_path, "other", inputs={}, resume=True) as other:
        assert other.done == {}
    filled(tmp_path)
    with Journal(tmp_path, "id", inputs={}, resume=False) as fresh:
        assert fresh.done == {}


def test_a_damaged_first_line_is_of_nobody(tmp_path: Path):
    path = filled(tmp_path)
    whole = path.read_bytes()
    for header in (
        b"\n",
        b"",
        b"[]\n",
        b'{"identity": "id"}\n',
        whole.split(b"\n")[0].replace(b'"id"', b'"xx"') + b"\n",
    ):
        path.write_bytes(header + whole.split(b"\n", 1)[1])
        assert read(path, "id") == {}, header


@settings(max_examples=50)
@given(st.integers(0, 10**9), st.integers(1, 255))
def test_a_byte_that_changed_costs_its_line(tmp_path_factory: pytest.TempPathFactory, at: int, by: int):
    path = filled(tmp_path_factory.mktemp("j"))
    whole = bytearray(path.read_bytes())
    at %= len(whole)
    whole[at] ^= by
    path.write_bytes(whole)
    done = read(path, "id")
    assert all(same(m, measured(int(k[1:]))) for k, m in done.items())
    assert len(done) >= 3 or (not done and at < whole.index(b"\n") + 1)  # a newline in its middle makes two of a line


@settings(max_examples=50)
@given(st.floats(0, 1))
def test_cut_off_anywhere_keeps_whole_lines(tmp_path_factory: pytest.TempPathFactory, share: float):
    folder = tmp_path_factory.mktemp("j")
    path = filled(folder)
    whole = path.read_bytes()
    keep = int(share * len(whole))
    path.write_bytes(whole[:keep])
    done = read(path, "id")
    # A last line without its newline may be complete; all that is there is right.
    assert min(whole[:keep].count(b"\n") - 1, 5) <= len(done)
    assert all(same(m, measured(int(k[1:]))) for k, m in done.items())
    with Journal(folder, "id", inputs={}, resume=True) as again:
        again.add("w9", measured(9))
    assert set(read(path, "id")) == {*done, "w9"}


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_what_is_finished_survives_a_resume_that_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    path = filled(tmp_path)
    before = path.read_bytes()
    to_json, written = journal._to_json, []

    def cut_off(key: str, m: Measured) -> dict[str, object]:
        if len(written) == 2:
            raise error
        written.append(key)
        return to_json(key, m)

    monkeypatch.setattr(journal, "_to_json", cut_off)
    with pytest.raises(ResultsError if isinstance(error, OSError) else KeyboardInterrupt):
        Journal(tmp_path, "id", inputs={}, resume=True)
    monkeypatch.undo()
    assert path.read_bytes() == before
    (tmp_path / f".{path.name}.1.2.tmp").write_text("what a kill leaves")
    with Journal(tmp_path, "id", inputs={}, resume=True) as again:
        assert len(again.done) == 5
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_two_runs_into_one_directory(tmp_path: Path):
    with Journal(tmp_path, "id", inputs={}, resume=True), pytest.raises(ResultsError, match="another run"):
        Journal(tmp_path, "id", inputs={}, resume=True)
    with Journal(tmp_path, "id", inputs={}, resume=True):
        pass


def test_finished_runs_leave_no_journal(tmp_path: Path):
    kept = Journal(tmp_path, "id", inputs={}, resume=True)
    kept.close(finished=True)
    assert not kept.path.exists()


def test_a_directory_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot be written"):
        Journal(tmp_path / "file" / "x", "id", inputs={}, resume=True)


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    out = tmp_path / "o"
    (out / "figures").mkdir(parents=True)
    left = [out / ".layers.csv.123.456.tmp", out / "figures" / ".ranks.svg.1.2.tmp", out / f".{journal.NAME}.7.8.tmp"]
    kept = [out / "notes.tmp", out / ".hidden", out / ".x.tmp"]
    for path in (*left, *kept):
        path.write_text("x")
    journal.Journal(out, "identity", inputs={"base": ["a"], "ft": ["b"]}, resume=True).close()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
