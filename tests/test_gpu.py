"""On a GPU the same numbers come out as on the CPU; skipped where there is none."""

import numpy as np
import pytest
import torch

import deltaw
from tests.conftest import changed, pico_state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_rows_agree_with_the_cpu(dtype: torch.dtype, mode: str):
    g = torch.Generator().manual_seed(0)
    base = pico_state(dtype=dtype)
    for shape in ((300, 200), (200, 300), (512, 512), (64, 2000)):
        base[f"layers.0.w{shape[0]}.weight"] = (0.02 * torch.randn(*shape, generator=g)).to(dtype)
    ft = changed(base, 1e-2)
    cpu = deltaw.analyze(base, ft, device="cpu", mode=mode, alignment=True, cache=False).to_pandas()
    gpu = deltaw.analyze(base, ft, device="cuda", mode=mode, alignment=True, cache=False).to_pandas()
    assert (cpu["name"] == gpu["name"]).all()
    for column in cpu.select_dtypes("number").columns.drop("seconds"):
        np.testing.assert_allclose(gpu[column], cpu[column], rtol=1e-4, atol=1e-7, err_msg=column)


def test_what_does_not_fit_is_measured_on_the_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """The GPU's memory is limited to less than one matrix needs."""
    g = torch.Generator().manual_seed(0)
    base = {"layers.0.w.weight": torch.randn(3000, 3000, generator=g)}
    ft = changed(base)
    expected = deltaw.analyze(base, ft, device="cpu").to_pandas()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(50e6 / total)
    try:
        got = deltaw.analyze(base, ft, device="cuda:0")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not got.failed
    np.testing.assert_allclose(got.to_pandas()["effective_rank"], expected["effective_rank"], rtol=1e-6)
    assert any("measured on the CPU" in r.message for r in caplog.records)
