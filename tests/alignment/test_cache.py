"""The cache of singular vectors: content keys, bounded size, damage, and many writers."""

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save

import deltaw
from deltaw.alignment import cache as basecache
from deltaw.alignment.cache import BaseCache, content_key, default_cache
from deltaw.errors import OptionError
from deltaw.files import parse_size


def arrays(n=10, value=1.0):
    return {"s": np.full(n, value), "q": np.eye(n, dtype=np.float32)}


def age(folder, seconds=7200):
    for i, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (time.time() - seconds + i, time.time() - seconds + i))


def test_what_is_put_is_got(tmp_path):
    cache = BaseCache(tmp_path / "new")
    assert cache.get("a") is None
    assert cache.put("a", arrays())
    found = cache.get("a")
    np.testing.assert_array_equal(found["s"], np.ones(10))
    assert found["q"].dtype == np.float32
    assert cache.get("b") is None


DAMAGE = {
    "cut off": lambda whole: whole[:50],
    "empty": lambda whole: b"",
    "another file": lambda whole: save({"x": np.zeros(2)}),
    "one bit": lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_recomputed(tmp_path, caplog, damage):
    cache = BaseCache(tmp_path)
    cache.put("a", arrays())
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert cache.get("a") is None
    assert "damaged; computing them again" in caplog.text
    assert not file.exists()
    assert cache.put("a", arrays())
    assert cache.get("a") is not None


def test_the_oldest_is_evicted(tmp_path):
    cache = BaseCache(tmp_path, limit=2500)  # 480 bytes of arrays each, and a header
    for name in "abc":
        assert cache.put(name, arrays())
    age(tmp_path)
    cache.get("a")  # now the youngest
    while cache.put("d", arrays()) and len(list(tmp_path.iterdir())) > 3:
        pass
    cache.put("e", arrays(20))
    names = {p.stem.split("-")[-1] for p in tmp_path.iterdir()}
    assert "a" in names
    assert "b" not in names
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 2500 + 1000


def test_what_is_in_use_is_not_evicted(tmp_path):
    cache = BaseCache(tmp_path, limit=1200)
    assert cache.put("a", arrays())
    assert not cache.put("b", arrays(12))
    assert cache.get("a") is not None
    assert not cache.put("huge", {"x": np.zeros(10**5)})


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = BaseCache(tmp_path / "file" / "sub")
    with caplog.at_level(logging.WARNING):
        assert not cache.put("a", arrays())
        assert cache.get("a") is None
        assert not cache.put("b", arrays())
    assert caplog.text.count("going on without a cache") == 1


def test_what_cannot_be_read_is_said_once(tmp_path, caplog):
    cache = BaseCache(tmp_path)
    for key in "ab":
        (tmp_path / f"base-{basecache.VERSION}-{key}.safetensors").mkdir()
    with caplog.at_level(logging.WARNING):
        assert cache.get("a") is None
        assert not cache.put("a", arrays())
        assert not cache.put("b", arrays())
    assert caplog.text.count("going on without a cache") == 1


def test_many_writers_and_readers(tmp_path):
    cache = BaseCache(tmp_path)

    def work(i):
        cache.put("same", arrays(50, 3.0))
        found = cache.get("same")
        return found is None or bool((found["s"] == 3).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))
    assert [p.name for p in tmp_path.iterdir()] == [f"base-{basecache.VERSION}-same.safetensors"]


def test_keys_are_of_the_content():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert content_key(x) == content_key(x.clone())
    assert content_key(x.T) == content_key(x.T.contiguous())
    keys = {content_key(y) for y in (x, x.T, x + 1, x.double(), x.bfloat16(), x.reshape(4, 6), x[:5], x[:0])}
    assert len(keys) == 8


def test_the_environment_decides(tmp_path, monkeypatch):
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path))
    monkeypatch.setenv("DELTAW_CACHE_SIZE", "2M")
    assert default_cache() == BaseCache(tmp_path, 2 * 2**20)
    monkeypatch.setenv("DELTAW_CACHE", "off")
    assert default_cache() is None
    monkeypatch.delenv("DELTAW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache().folder == tmp_path / "deltaw"


@pytest.mark.parametrize("wrong", [{"DELTAW_CACHE_SIZE": "much"}, {"DELTAW_CACHE": "~nobody-of-that-name/x"}])
def test_wrong_settings_are_said_and_cost_no_tensor(tmp_path, monkeypatch, caplog, wrong, pico_pair):
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        found = deltaw.analyze(*pico_pair, alignment=True, include=[r"layers\.0\.self_attn"])
    assert not found.failed
    assert caplog.text.count("going on without it") == 1


def test_a_warm_cache_gives_the_bits_of_a_cold_one_and_of_none(tmp_path, monkeypatch, pico_pair):
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    cold = deltaw.analyze(*pico_pair, alignment=True, jobs=1)
    assert len(list((tmp_path / "cache").iterdir())) > 10
    warm, none = (deltaw.analyze(*pico_pair, alignment=True, jobs=1, cache=c) for c in (True, False))
    for other in (warm, none):
        frames = [a.to_pandas().drop(columns="seconds") for a in (cold, other)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
        assert cold.intruders == other.intruders


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("500M", 500 * 2**20), ("20GB", 20 * 2**30), ("1.5 GiB", 3 * 2**29), ("7k", 7168)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1 X", "1e9"])
def test_what_is_no_size(text):
    with pytest.raises(OptionError, match="size"):
        parse_size(text)
