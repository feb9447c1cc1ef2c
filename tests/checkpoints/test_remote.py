"""Checkpoints that lie elsewhere: the rows of local files, few bytes, right rows or one line when a network fails."""

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import deltaw
from benchmarks.many_adapters import task_factors, write_adapter, write_base
from deltaw.checkpoints import open_checkpoint
from deltaw.checkpoints.remote import RemoteFile, buckets, hub_address, hub_parts, mirror
from deltaw.checkpoints.remote import http as remote_http
from deltaw.cli import main
from deltaw.errors import CheckpointError, EditError
from deltaw.measurement import measure
from deltaw.surveys import inputs
from deltaw.surveys.inputs import members
from tests.checkpoints import servers
from tests.checkpoints.servers import COMMIT, Server, serving
from tests.checkpoints.test_distcp import in_pieces
from tests.checkpoints.test_distcp import save as save_in_pieces
from tests.conftest import State, changed, pico_state, save_bin, save_lora, save_sharded, save_single
from tests.surveys.conftest import TINY

WIDE = 512


def wide(seed: int = 0) -> State:
    """Two layers whose matrices outweigh every header: 1 MiB each."""
    g = torch.Generator().manual_seed(seed)
    names = [f"model.layers.{i}.mlp.{n}_proj.weight" for i in range(2) for n in ("up", "down")]
    return {name: torch.randn(WIDE, WIDE, generator=g) for name in names} | {"model.norm.weight": torch.ones(WIDE)}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(tmp_path / "served") as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        for name, value in {
            "AWS_ENDPOINT_URL": found.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
            "GOOGLE_BASE_URL": found.url,
            "GOOGLE_ALLOW_HTTP": "true",
            "GOOGLE_SKIP_SIGNATURE": "true",
            "AZURE_ENDPOINT": found.url,
            "AZURE_ALLOW_HTTP": "true",
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_SKIP_SIGNATURE": "true",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(remote_http, "BACKOFF", 0.001)
        monkeypatch.setattr(remote_http, "TIMEOUT", 0.4)
        quick = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2), "base": 2}
        monkeypatch.setattr(buckets, "RETRIES", {**buckets.RETRIES, "backoff": quick})
        monkeypatch.setattr(buckets, "BACKOFF", 0.001)
        buckets._store.cache_clear()
        huggingface_hub.close_session()
        yield found
        huggingface_hub.close_session()
    mirror._mirrors.clear()
    mirror._places.clear()
    remote_http._sent_to.clear()


@pytest.fixture
def pair(server: Server) -> tuple[Path, Path]:
    """A base in shards and a fine-tune in one file, on the Hub."""
    hub = server.root / "hub" / "org"
    base = save_sharded(wide(), hub / "base", shards=2)
    ft = save_single(changed(wide()), hub / "ft")
    for folder in (base, ft):
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (ft / "README.md").write_text("---\nbase_model: org/base\n---\n")
    return base, ft


def same_rows(found: deltaw.Analysis, expected: deltaw.Analysis) -> None:
    one, two = (a.to_pandas().drop(columns="seconds") for a in (found, expected))
    assert len(two)
    assert one.equals(two)
    assert list(found.spectra) == list(expected.spectra)


def header(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def small(*folders: Path) -> int:
    return sum(p.stat().st_size for f in folders for p in f.iterdir() if p.suffix in {".json", ".md"})


def weights(*folders: Path) -> list[Path]:
    return [p for folder in folders for p in sorted(folder.glob("*.safetensors"))]


def test_rows_of_the_hub_are_those_of_the_files_and_little_else_is_read(server: Server, pair: tuple[Path, Path]):
    local = deltaw.analyze(*pair)
    found = deltaw.analyze("org/base", "org/ft")
    same_rows(found, local)
    needed = sum(p.stat().st_size for p in weights(*pair))
    assert server.sent <= 1.01 * needed
    assert found.base is not None
    assert (found.base.path, found.base.revision) == ("org/base", COMMIT)
    assert found.base.files[-1].path == f"hf://org/base@{COMMIT}/model-00002-of-00002.safetensors"
    assert found.command == f"deltaw analyze org/base@{COMMIT} org/ft@{COMMIT}"
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))


def test_one_argument_streams_too(server: Server, pair: tuple[Path, Path], tmp_path: Path):
    done = CliRunner().invoke(main, ["analyze", "org/ft", "--no-report", "--json", "--out", str(tmp_path / "o")])
    assert done.exit_code == 0, done.output
    assert "base: org/base (named by README.md)" in done.stderr
    assert json.loads(done.stdout)["base"]["revision"] == COMMIT
    (pair[1] / "README.md").unlink()
    mirror._mirrors.clear()
    server.relations["org/ft"] = ["org/base"]
    assert deltaw.inspect("org/ft").base.found_by.startswith("named by the Hub's baseModels")  # type: ignore[union-attr]


def test_inspect_reads_headers_only(server: Server, pair: tuple[Path, Path]):
    done = CliRunner().invoke(main, ["inspect", "org/base", f"hf://org/ft@{COMMIT}"])
    assert done.exit_code == 0, done.output
    assert server.sent <= sum(map(header, weights(*pair))) + small(*pair) + 2000  # what the API says
    assert "5 to measure" in done.stdout


def test_one_module_of_a_huge_checkpoint_costs_its_bytes(server: Server):
    web = server.root / "web"
    big = 100 << 30  # of which all is a hole but one matrix
    for name, value in (("base", 0.0), ("ft", 1e-3)):
        file = web / name / "model.safetensors"
        file.parent.mkdir(parents=True)
        shapes = {
            "model.layers.0.mlp.up_proj.weight": [64, 64],
            "model.layers.1.mlp.up_proj.weight": [1 << 17, 1 << 18],
        }
        at, about = 0, {}
        for tensor, shape in shapes.items():
            size = 2 * shape[0] * shape[1]
            about[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(about).encode()
        with file.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            g = torch.Generator().manual_seed(0)
            matrix = (torch.randn(64, 64, generator=g) + value).to(torch.bfloat16)
            out.write(matrix.view(torch.uint8).numpy().tobytes())
            out.truncate(8 + len(text) + at)
        big = file.stat().st_size
    found = deltaw.analyze(f"{server.url}/web/base", f"{server.url}/web/ft", include=r"layers\.0\.")
    assert [row["name"] for row in found.rows] == ["model.layers.0.mlp.up_proj.weight"]
    assert big > 64 << 30
    assert server.sent < 1e-6 * big


def test_web_files_and_directories(server: Server, tmp_path: Path):
    base = save_sharded(pico_state(), server.root / "web" / "base")
    ft = save_single(changed(pico_state()), server.root / "web" / "ft")
    adapter = save_lora(server.root / "web" / "adapter")
    local, url = deltaw.analyze(base, ft), f"{server.url}/web"
    same_rows(deltaw.analyze(f"{url}/base/", f"{url}/ft/model.safetensors"), local)
    same_rows(deltaw.analyze(f"{url}/base", f"{url}/adapter"), deltaw.analyze(base, adapter))
    done = CliRunner().invoke(main, ["inspect", f"{url}/base", f"{url}/nothing"])
    assert done.exit_code == 1
    assert "no weights under the usual names" in done.stderr
    server.denies_missing = True
    mirror._mirrors.clear()
    same_rows(deltaw.analyze(f"{url}/base", f"{url}/ft"), local)
    with pytest.raises(CheckpointError, match=r"may not be read \(its server answers 403\)"):
        open_checkpoint(f"{url}/nothing")
    with pytest.raises(CheckpointError, match=r"^127\.0\.0\.1: a password in an address is not sent"):
        open_checkpoint(url.replace("://", "://me:secret@"))
    server.denies_missing = False
    (base / "model-00002-of-00003.safetensors").unlink()
    mirror._mirrors.clear()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00003\.safetensors: is named by the index and is not there"
    ):
        open_checkpoint(f"{url}/base")


@pytest.mark.parametrize("scheme", buckets.SCHEMES)
def test_a_bucket(server: Server, scheme: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("obstore")
    at = f"{scheme}://bucket"
    base = save_sharded(pico_state(), server.root / "s3" / "bucket" / "models" / "base")
    ft = save_single(changed(pico_state()), server.root / "s3" / "bucket" / "models" / "ft")
    same_rows(deltaw.analyze(f"{at}/models/base", f"{at}/models/ft/"), deltaw.analyze(base, ft))
    one = open_checkpoint(f"{at}/models/ft/model.safetensors")
    name = "lm_head.weight"
    assert torch.equal(one.tensors[name].read(slice(3, 9)), load_file(ft / "model.safetensors")[name][3:9])
    monkeypatch.setattr(buckets, "MOST", 3)
    with pytest.raises(CheckpointError, match=f"{at}: more than 3 files lie there; give the directory of one"):
        open_checkpoint(at)
    with pytest.raises(CheckpointError, match=f"{at}/nothing: is not there"):
        open_checkpoint(f"{at}/nothing")
    save_file({name: torch.zeros(2, 2)}, ft / "model.safetensors")
    with pytest.raises(CheckpointError, match="was changed since it was opened"):
        one.tensors[name].read()


@pytest.mark.parametrize("scheme", buckets.SCHEMES)
@pytest.mark.parametrize(
    "fault", [servers.status(503), servers.status(429), servers.short, servers.reset, servers.slow]
)
def test_passing_faults_of_a_bucket(server: Server, scheme: str, fault: servers.Fault):
    pytest.importorskip("obstore")
    expected = open_checkpoint(save_single(wide(), server.root / "s3" / "bucket" / "ft"))
    server.faults = [fault]  # of the header
    found = open_checkpoint(f"{scheme}://bucket/ft")
    for name, handle in list(found.tensors.items())[:2]:
        server.faults = [fault]
        assert torch.equal(handle.read(), expected.tensors[name].read())
    assert not server.faults


@pytest.mark.parametrize("scheme", buckets.SCHEMES)
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (servers.status(503), "cannot be read ("),
        (servers.reset, "cannot be read ("),
        (servers.short, "cannot be read ("),
        (servers.whole, "cannot be read ("),
        (servers.other, "cannot be read ("),
        (servers.status(401), "may not be read; set "),  # a token that expired
        (servers.status(403), "may not be read; set "),
        (servers.status(404), "is not there; check the address"),
        (servers.status(412), "was changed since it was opened; run again"),
    ],
)
def test_lasting_faults_of_a_bucket_are_one_line(server: Server, scheme: str, fault: servers.Fault, line: str):
    pytest.importorskip("obstore")
    save_single(wide(), server.root / "s3" / "bucket" / "ft")
    handle = open_checkpoint(f"{scheme}://bucket/ft").tensors["model.layers.0.mlp.up_proj.weight"]
    server.always = fault
    with pytest.raises(CheckpointError) as caught:
        handle.read()
    assert str(caught.value).startswith(f"{scheme}://bucket/ft/model.safetensors: {line}")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("scheme", ["hf", *buckets.SCHEMES])
def test_pieces_of_torch_distributed_are_read_where_they_lie(server: Server, scheme: str):
    pytest.importorskip("obstore")
    root = server.root / ("hub/org" if scheme == "hf" else "s3/bucket")
    at = f"{scheme}://{'org' if scheme == 'hf' else 'bucket'}"
    base, ft = save_single(wide(), root / "base"), save_in_pieces(in_pieces(changed(wide())), root / "ft")
    expected = deltaw.analyze(base, ft)
    opened = open_checkpoint(f"{at}/ft")
    server.reset()
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(opened.tensors[name].read(), changed(wide())[name])
    assert server.sent < 1.1 * 4 * WIDE * WIDE
    assert len(server.asked) <= 6 * len(opened.tensors[name].pieces) * (2 if scheme == "hf" else 1)  # type: ignore[attr-defined]
    found = deltaw.analyze(f"{at}/base", f"{at}/ft")
    same_rows(found, expected)
    assert {f.path.rpartition("/")[2] for f in found.ft.files} >= {".metadata", "__0_0.distcp"}
    server.always = servers.status(404)
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp.*is not there"):
        opened.tensors[name].read()
    server.always = None
    if scheme == "hf":
        same_rows(deltaw.analyze(f"{at}/base", f"{at}/ft", download=True), expected)


def test_one_is_read_while_another_is_computed_within_the_memory(server: Server, monkeypatch: pytest.MonkeyPatch):
    web = server.root / "web"
    save_single(wide(), web / "base")
    save_single(changed(wide()), web / "ft")
    asked, overlapped = threading.Event(), []
    first = threading.Lock()
    compute = measure._spectrum

    def told(handler: servers.Handler, data: bytes, start: int, last: int) -> bool:
        if computing.is_set() and last - start > 1 << 19:
            asked.set()
        return False

    def slow(*args: Any) -> Any:
        if first.acquire(blocking=False):  # the first matrix is not done before another one is asked for, or a while
            asked.clear()
            computing.set()
            overlapped.append(asked.wait(patience))
        return compute(*args)

    computing = threading.Event()
    server.always = told
    sides = f"{server.url}/web/base", f"{server.url}/web/ft"
    expected = deltaw.analyze(web / "base", web / "ft", jobs=1)
    monkeypatch.setattr(measure, "_spectrum", slow)
    patience = 20.0
    same_rows(deltaw.analyze(*sides, jobs=1), expected)
    assert overlapped == [True]
    first.release()
    computing.clear()
    overlapped.clear()
    patience = 0.3
    deltaw.analyze(*sides, jobs=1, memory=1 << 20)  # less than two
    assert overlapped == [False]


def test_a_bucket_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    done = CliRunner().invoke(main, ["inspect", "s3://bucket/base", "gs://bucket/ft"])
    assert done.exit_code == 1
    assert done.stderr == (
        "Error: s3://bucket/base: buckets are read by obstore, which is not installed; pip install 'deltaw[remote]'\n"
    )


@pytest.mark.parametrize(
    "fault", [servers.status(503), servers.status(429), servers.short, servers.reset, servers.slow]
)
def test_passing_faults_cost_nothing_but_time(server: Server, pair: tuple[Path, Path], fault: servers.Fault):
    expected = open_checkpoint(pair[1])
    server.faults = [fault, fault, servers.status(500)]  # of the header
    found = open_checkpoint("org/ft")
    for name, handle in list(found.tensors.items())[:2]:
        server.faults = [fault]
        assert torch.equal(handle.read(), expected.tensors[name].read())
    assert not server.faults


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (servers.status(503), "6 attempts failed (its server answers 503); try again later"),
        (servers.reset, "6 attempts failed"),
        (servers.short, "6 attempts failed (524,288 of 1,048,576 bytes came)"),
        (servers.whole, "its server ignores Range (it answers 200 and the whole file); download it"),
        (servers.other, "its server sent"),
        (servers.status(403), "may not be read (its server answers 403)"),
        (servers.status(404), "is not there (its server answers 404)"),
    ],
)
def test_lasting_faults_are_one_line(server: Server, pair: tuple[Path, Path], fault: servers.Fault, line: str):
    handle = open_checkpoint("org/ft").tensors["model.layers.0.mlp.up_proj.weight"]
    server.always = fault
    with pytest.raises(CheckpointError) as caught:
        handle.read()
    assert line in str(caught.value)
    assert f"hf://org/ft@{COMMIT}/model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_told_of_its_rows_and_tried_again(
    server: Server, pair: tuple[Path, Path], tmp_path: Path
):
    out = tmp_path / "out"
    arguments = ["analyze", "org/base", "org/ft", "--no-report", "--out", str(out)]
    fault = servers.status(503)

    def one(handler: servers.Handler, data: bytes, first: int, last: int) -> bool:
        return (
            last - first > 1 << 19
            and "/ft/" in handler.path
            and first < header(pair[1] / "model.safetensors") + 10
            and fault(handler, data, first, last)
        )

    server.always = one
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 3, done.output
    assert "its server answers 503" in done.stderr
    server.always = None
    assert CliRunner().invoke(main, arguments).exit_code == 0
    again = deltaw.load(out).to_pandas()[["name", "fro_norm", "rank_90"]]
    assert again.equals(deltaw.analyze(*pair).to_pandas()[["name", "fro_norm", "rank_90"]])


def test_a_file_that_changes_between_requests_is_named(server: Server):
    folder = save_single(wide(), server.root / "web" / "ft")
    opened = open_checkpoint(f"{server.url}/web/ft/model.safetensors")
    save_single(wide(1), folder)
    with pytest.raises(CheckpointError, match="was changed since it was opened"):
        opened.tensors["model.norm.weight"].read()


def test_the_commit_is_pinned_before_the_first_range(server: Server, pair: tuple[Path, Path]):
    opened = open_checkpoint("org/ft")
    server.asked.clear()
    opened.tensors["model.norm.weight"].read()
    assert all(f"/resolve/{COMMIT}/" in line or "/cdn/" in line for line in server.asked)
    assert opened.revision == COMMIT


def test_an_address_that_expires_is_asked_for_again(server: Server, pair: tuple[Path, Path]):
    opened = open_checkpoint("org/ft")
    server.expired.add("s0")
    assert opened.tensors["model.norm.weight"].read().shape == (WIDE,)


def test_connections_are_kept(server: Server, pair: tuple[Path, Path]):
    opened = open_checkpoint("org/ft")
    opened.tensors["model.norm.weight"].read()
    server.reset()
    for handle in opened.tensors.values():
        handle.read()
    assert (server.connections, len(server.asked)) == (0, 5)


def test_a_proxy_of_the_environment_is_used_and_plain_http_is_warned_of(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    save_single(pico_state(), server.root / "web" / "ft")
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    opened = open_checkpoint("http://models.invalid/web/ft/model.safetensors?signature=secret")
    assert torch.equal(opened.tensors["lm_head.weight"].read(), pico_state()["lm_head.weight"])
    assert "http://models.invalid/web/ft/model.safetensors: is read without encryption" in caplog.text
    assert "secret" not in caplog.text + str(opened.as_source().to_dict())


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    server: Server, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    server.token = "hf_secret"
    with pytest.raises(CheckpointError, match=r"may not be read \(its server answers 401\); log in \(hf auth login\)"):
        open_checkpoint("org/ft")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert open_checkpoint("org/ft").tensors["model.norm.weight"].read().shape == (WIDE,)


def test_a_base_that_may_not_be_read_is_named_with_the_way_out(server: Server, pair: tuple[Path, Path], tmp_path: Path):
    here = save_single(changed(wide()), tmp_path / "ft")
    (here / "README.md").write_text("---\nbase_model: org/base\n---\n")
    server.token = "hf_secret"
    with pytest.raises(
        CheckpointError, match=r"no base was found: .*org/base.*answers 401.*deltaw analyze BASE"
    ) as caught:
        deltaw.analyze(here)
    assert "\n" not in str(caught.value)


def test_missing_and_hostile_places_are_one_line(server: Server, pair: tuple[Path, Path]):
    for source, said in {
        "org/nothing": "not found on the Hugging Face Hub, or private",
        "hf://org/ft/nothing": "nothing is there",
        f"{server.url}/web/x.safetensors": "is not there (its server answers 404)",
        "http://127.0.0.1:1/x.safetensors": "attempts failed",
    }.items():
        done = CliRunner().invoke(main, ["inspect", "org/base", source])
        assert done.exit_code == 1, source
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    (server.root / "web").mkdir()
    (server.root / "web" / "x.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + b"{}" * 50)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        open_checkpoint(f"{server.url}/web/x.safetensors")


@pytest.mark.parametrize("scheme", ["hf", "http", *buckets.SCHEMES])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_refused_in_one_line_that_names_the_way_out(server: Server, scheme: str, name: str):
    pytest.importorskip("obstore")
    folder = {"hf": "hub/org/ft", "http": "web/ft"}.get(scheme, "s3/bucket/ft")
    at = {"hf": "hf://org/ft", "http": f"{server.url}/web/ft"}.get(scheme, f"{scheme}://bucket/ft")
    save_bin(pico_state(), server.root / folder)
    (server.root / folder / "pytorch_model.bin").rename(server.root / folder / name)
    address = f"{at}/{name}" if scheme == "http" else at
    with pytest.raises(CheckpointError, match=r"analyze --download fetches it whole") as caught:
        open_checkpoint(address)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickles_are_not_read_where_they_lie_but_downloaded_whole(server: Server, tmp_path: Path):
    base = save_bin(pico_state(), server.root / "hub" / "org" / "old")
    ft = save_bin(changed(pico_state()), server.root / "web" / "old")
    sources = ["org/old", f"{server.url}/web/old"]
    done = CliRunner().invoke(main, ["analyze", *sources, "--out", str(tmp_path / "o")])
    assert done.exit_code == 1
    assert "only safetensors are read where they lie; analyze --download fetches it whole" in done.stderr
    same_rows(deltaw.analyze(*sources, download=True), deltaw.analyze(base, ft))


def test_what_is_in_the_cache_is_read_from_there(server: Server, pair: tuple[Path, Path]):
    downloaded = deltaw.analyze("org/base", "org/ft", download=True)
    assert list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))
    server.reset()
    again = deltaw.analyze("org/base", "org/ft")
    same_rows(again, downloaded)
    assert server.sent < 20_000  # the API
    assert again.base is not None
    assert again.base.hash


def test_without_a_network_the_cache_is_read(server: Server, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    huggingface_hub.snapshot_download("org/base")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert len(open_checkpoint("org/base").tensors) == 5
    with pytest.raises(CheckpointError, match="as a Hugging Face Hub id it cannot be fetched"):
        open_checkpoint("org/ft")


def test_a_remote_checkpoint_is_not_edited(server: Server, pair: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(EditError, match="download it, and edit that"):
        deltaw.edit("org/base", "org/ft", tmp_path / "edited", scale=0.5)


def test_other_commands_take_ids_and_call_them_so(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    hub = server.root / "hub" / "org"
    save_sharded(pico_state(), hub / "base")
    save_single(changed(pico_state()), hub / "ft")
    factors = load_file(save_lora(hub / "adapter") / "adapter_model.safetensors")
    at = "model.layers.0.self_attn.q_proj"
    B, A = (factors[f"base_model.model.{at}.lora_{n}.weight"] for n in "BA")
    merged = pico_state()
    merged[f"{at}.weight"] += 2 * B @ A
    save_single(merged, hub / "merged")
    done = CliRunner().invoke(main, ["verify", "org/base", "org/adapter", "org/merged"])
    assert done.exit_code == 0, done.output
    assert "org/merged is org/base plus org/adapter" in done.stdout
    runs = "".join(f'[[runs]]\nname = "{n}"\ngroup = "{n}"\ncheckpoint = "org/{n}"\n' for n in ("ft", "merged"))
    Path("runs.toml").write_text(f'base = "org/base"\n{runs}')
    ranges = []
    for _ in range(2):
        server.reset()
        deltaw.compare("runs.toml", out="c", similarity=False, include="self_attn")
        ranges.append(sum("/cdn/" in line for line in server.asked))
    # What was measured is kept: only the headers are read again, each in two ranges.
    assert ranges[0] - ranges[1] >= 2 * 2 * 8
    assert all("bytes=0-7" in line or "bytes=8-" in line for line in server.asked if "/cdn/" in line)


def test_addresses():
    assert hub_parts("hf://org/name@refs%2Fpr%2F1/a/b.safetensors") == ("org/name", "refs/pr/1", "a/b.safetensors")
    assert hub_parts("hf://gpt2@main/model.safetensors") == ("gpt2", "main", "model.safetensors")
    assert hub_address("org/name@refs/pr/1") == "hf://org/name@refs%2Fpr%2F1"
    page = "https://huggingface.co/org/name/resolve/main/model.safetensors?download=true"
    assert hub_address(page) == "hf://org/name@main/model.safetensors"
    assert hub_address("https://example.org/org/name") == ""
    assert RemoteFile("https://example.org/a/model.safetensors?x=1/2", 1).name == "model.safetensors"


def test_small_files_are_fetched_once_and_nothing_needs_a_place_to_keep_them(
    server: Server, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept, _ = mirror.mirrored("org/base")
    assert kept.is_relative_to((tmp_path / "cache").resolve())
    for place, fetched in ((tmp_path / "cache", False), (tmp_path / "cache" / "a-file", True)):
        (tmp_path / "cache" / "a-file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        mirror._mirrors.clear()
        server.reset()
        again, _ = mirror.mirrored("org/base")
        assert any("config.json" in line for line in server.asked) == fetched
        assert (again == kept) != fetched
        assert len(open_checkpoint(again).tensors) == 5


def test_a_mirror_holds_small_files_and_nothing_that_leaves_it(server: Server, pair: tuple[Path, Path]):
    (pair[1] / "tokenizer.json").write_text("{}" * 1000)
    shutil.copyfile(pair[1] / "config.json", pair[1] / "generation_config.json")
    path, _ = mirror.mirrored("org/ft")
    assert sorted(p.name for p in path.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert not (path / "model.safetensors").stat().st_size


def test_a_survey_of_what_a_filter_of_the_hub_finds(server: Server, tmp_path: Path):
    """From a file, page by page; one of another base is not asked for."""
    hub = server.root / "hub"
    write_base(hub / "org" / "base", TINY)
    names = ["a/one", "a/two-10", "a/two-9", "b/four", "b/other"]
    for i, name in enumerate(names):
        write_adapter(hub / name, task_factors(TINY, 0, i, rank=2))
        server.tags[name] = ["lora", f"base_model:adapter:org/{'large' if name == 'b/other' else 'base'}"]
    tag = "hub: filter=base_model:adapter:org/base"
    (tmp_path / "list.txt").write_text(f"# of this base\n{tag} filter=lora\n")
    frame = deltaw.survey("org/base", [f"@{tmp_path / 'list.txt'}"]).adapters()
    assert frame["source"].tolist() == ["a/one", "a/two-9", "a/two-10", "b/four"]
    assert (frame["matrices"] == 7).all()
    for given, found in ((f"{tag} author=b", ["b/four"]), (f"{tag} search=two", ["a/two-9", "a/two-10"]),
                         (f"{tag} limit=3", ["a/one", "a/two-9", "a/two-10"])):  # fmt: skip
        assert [m.source for m in members([given])[0]] == found
    for wrong in ("hub:", "hub: lora", "hub: tag=lora", "hub: author=a author=b", "hub: filter=lora limit=0"):
        with pytest.raises(
            CheckpointError, match=rf"{wrong}: not a filter of the Hub; expected hub: and some of filter=TAG"
        ):
            members([wrong])
    with pytest.raises(CheckpointError, match="author=nobody: the Hub knows no model like this"):
        members([f"{tag} author=nobody"])


def test_a_filter_without_a_limit_leaves_nothing_out_in_silence(server: Server, monkeypatch: pytest.MonkeyPatch):
    for name in ("one", "two", "three"):
        (server.root / "hub" / "a" / name).mkdir(parents=True)
    monkeypatch.setattr(inputs, "MOST_FOUND", 2)
    with pytest.raises(CheckpointError, match="author=a: more than 2 models; narrow the filter, or add limit=NUMBER"):
        members(["hub: author=a"])
    assert len(members(["hub: author=a limit=3"])[0]) == 3
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hub: author=a: the Hugging Face Hub cannot be reached"):
        members(["hub: author=a"])
