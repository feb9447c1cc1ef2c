"""Collecting: the sums are those of what the layers met, whoever shares them, and the model is as it was."""

import pytest
import torch
from torch import nn

import deltaw
from deltaw.activations.collecting import parameter_name
from deltaw.activations.inputs import patches
from deltaw.activations.sketch import FrequentDirections
from deltaw.errors import ActivationsError, OptionError
from tests.activations.conftest import met


def test_the_sums_are_those_of_the_inputs(network, batches, tmp_path):
    found = deltaw.collect_activations(network, batches, tmp_path / "a.safetensors")
    seen = met(network, batches)
    assert {"q.weight", "k.weight", "c_fc.weight", "experts.0.weight", "experts.1.weight"} == set(seen)
    for name, x in seen.items():
        moments = found.moments(name)
        assert moments.count == len(x)
        torch.testing.assert_close(moments.sums, x.T @ x, rtol=1e-12, atol=1e-12)
    assert found.unseen == ("unused.weight",)
    assert found.moments("experts.0.weight").count + found.moments("experts.1.weight").count == 4 * 3 * 9


def test_tokens_are_counted(network, batches, tmp_path):
    found = deltaw.collect_activations(network, batches, tmp_path / "a.safetensors").moments("embed.weight")
    tokens = torch.cat([b["input_ids"].flatten() for b in batches])
    assert found.form == "counts"
    assert torch.equal(found.sums, torch.bincount(tokens, minlength=30).double())


def test_layers_that_met_the_same_share_one_tensor(network, batches, tmp_path):
    found = deltaw.collect_activations(network, batches, tmp_path / "a.safetensors")
    assert found.matrices["q.weight"].tensor == found.matrices["k.weight"].tensor
    assert found.matrices["q.weight"].tensor != found.matrices["c_fc.weight"].tensor


def test_a_tensor_changed_in_place_is_another_input(tmp_path):
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x)
            return y + self.b(x.mul_(2))

    found = deltaw.collect_activations(Changing(), [torch.ones(2, 4)], tmp_path / "a.safetensors")
    assert found.moments("a.weight").sums[0, 0] == 2
    assert found.moments("b.weight").sums[0, 0] == 8


def test_a_layer_that_meets_now_this_and_now_that_has_all_of_it(tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else self.a(x) + self.b(x)

    x = [torch.ones(2, 3), -torch.ones(1, 3)]
    found = deltaw.collect_activations(Branching(), x, tmp_path / "a.safetensors")
    assert found.moments("a.weight").count == 3
    assert found.moments("a.weight").sums[0, 0] == 3
    assert found.moments("b.weight").sums[0, 0] == 1


def test_wide_sums_are_symmetric_to_the_bit_and_those_of_parts_are_added(tmp_path):
    """Wider than the blocks in which the upper triangle is summed and mirrored, in float32, by two paths."""

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(300, 2), nn.Linear(300, 2)

        def forward(self, x, both):
            return self.a(x) + self.b(x) if both else self.a(x)

    g = torch.Generator().manual_seed(0)
    x = [torch.randn(50, 300, generator=g) + 1 for _ in range(3)]
    batches = [(x[0], True), (x[1], False), (x[2], True)]
    found = deltaw.collect_activations(Branching(), batches, tmp_path / "a.safetensors")
    for name, parts in (("a.weight", x), ("b.weight", x[::2])):
        whole = torch.cat(parts).double()
        moments = found.moments(name)
        assert torch.equal(moments.sums, moments.sums.T)
        torch.testing.assert_close(moments.sums, whole.T @ whole, rtol=1e-12, atol=1e-12)
        assert moments.energy == pytest.approx(float(moments.sums.trace()), rel=1e-12)


def test_padding_does_not_count(network, batches, tmp_path):
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[:, 5:] = 0
    found = deltaw.collect_activations(
        network, [b | {"attention_mask": mask} for b in batches], tmp_path / "a.safetensors"
    )
    assert found.moments("q.weight").count == found.moments("embed.weight").count == 4 * 3 * 5
    x = network.embed(torch.cat([b["input_ids"][:, :5] for b in batches])).detach().flatten(0, 1)
    torch.testing.assert_close(found.moments("q.weight").sums, x.T @ x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 5, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(3, 4, (3, 2), padding="same", padding_mode="reflect"),
        nn.Conv3d(2, 3, 2, stride=(1, 2, 1)),
    ],
)
def test_a_convolution_is_a_product_with_its_patches(conv):
    x = torch.randn(2, conv.in_channels, *[7] * len(conv.kernel_size), generator=torch.Generator().manual_seed(0))
    out = (patches(conv, x) @ conv.weight.flatten(1).T + conv.bias).detach()
    torch.testing.assert_close(out, conv(x).movedim(1, -1).flatten(0, -2).detach())


def test_a_sketch_is_below_the_sums_by_no_more_than_its_error():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 40, generator=g, dtype=torch.float64) * torch.logspace(0, -2, 40, dtype=torch.float64)
    sketch = FrequentDirections(40, 8, torch.device("cpu"))
    for part in x.split(37):
        sketch.add(part)
    left = torch.linalg.eigvalsh(x.T @ x - sketch.rows.T @ sketch.rows)
    assert left[0] > -1e-9
    assert 0 < left[-1] <= sketch.error
    assert sketch.error <= float(x.square().sum()) / 8  # Theorem 1.1: ‖X‖F²/ℓ


def test_a_sketch_of_few_inputs_is_exact():
    x = torch.randn(16, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sketch = FrequentDirections(40, 8, torch.device("cpu"))
    sketch.add(x)
    assert sketch.error == 0
    torch.testing.assert_close(sketch.rows, x)


def test_wide_inputs_are_sketched(network, batches, tmp_path):
    found = deltaw.collect_activations(
        network, batches, tmp_path / "a.safetensors", sketch_above=15, sketch_rows=4, include="conv|c_fc"
    )
    assert found.matrices["c_fc.weight"].form == "moments"
    assert found.matrices["conv.weight"].form == "sketch"
    assert found.matrices["conv.weight"].error > 0


def test_the_model_is_as_it_was(network, batches, tmp_path):
    network.train()
    network.q.eval()
    before = {name: m.training for name, m in network.named_modules()}
    deltaw.collect_activations(network, batches, tmp_path / "a.safetensors")
    assert {name: m.training for name, m in network.named_modules()} == before
    assert not any(m._forward_pre_hooks for m in network.modules())
    assert torch.is_grad_enabled()


def test_inference_mode_and_half_precision(network, batches, tmp_path):
    with torch.inference_mode():
        found = deltaw.collect_activations(network.bfloat16(), batches, tmp_path / "a.safetensors")
    assert found.moments("q.weight").sums.dtype == torch.float64
    assert found.moments("q.weight").count == 4 * 3 * 9


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there was no batch"),
        ([{"input_ids": torch.zeros(0, 9, dtype=torch.int64)}], "called none of its matrices"),
    ],
)
def test_nothing_seen_is_said(network, tmp_path, batches, message):
    with pytest.raises(ActivationsError, match=message):
        deltaw.collect_activations(network, batches, tmp_path / "a.safetensors", include="embed|^q")
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_line(network, batches, tmp_path):
    out = tmp_path / "a.safetensors"
    with pytest.raises(ActivationsError, match="no linear layer"):
        deltaw.collect_activations(nn.ReLU(), batches, out)
    with pytest.raises(OptionError, match="sketch_rows 0"):
        deltaw.collect_activations(network, batches, out, sketch_rows=0)
    with pytest.raises(ActivationsError, match="is a folder"):
        deltaw.collect_activations(network, batches, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ActivationsError, match="holds no activations"):
        deltaw.collect_activations(network, batches, tmp_path / "notes.txt")
    network.embed.weight.data[:] = torch.inf
    with pytest.raises(ActivationsError, match=r"q\.weight: its inputs are not finite"):
        deltaw.collect_activations(network, batches, out)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("model.layers.0.q_proj", "model.layers.0.q_proj.weight"),
        ("_orig_mod.fc", "fc.weight"),
        ("base_model.model.layers.0.q.base_layer", "layers.0.q.weight"),
        ("", "weight"),
    ],
)
def test_names_are_those_of_a_checkpoint(module, name):
    assert parameter_name(module) == name
