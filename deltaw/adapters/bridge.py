"""Every other method that PEFT can merge, computed by PEFT itself: one module at a time, never the model.

A skeleton holds the adapted module under its own path, with W0 read when its ΔW is asked for. PEFT's tuner injects
the adapter into it as into any model, in the stored dtype (a method may draw its fixed random matrices or decompose
W0 there), the adapter's tensors are loaded, and the merge happens in float64. ΔW is merged minus W0.

Some methods share state between modules. Their siblings stand in the skeleton as placeholders of the right shape that
take no memory.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from deltaw.adapters.base import Base
from deltaw.adapters.foreign import is_target, peft_config, refuse_absurd_sizes
from deltaw.adapters.keys import TOKENS, TRAINING_ONLY, saved_name
from deltaw.adapters.lora import Context
from deltaw.adapters.methods import CHANGES_BIAS, NO_DELTA, installed
from deltaw.adapters.skeleton import Stand, build, stand_in
from deltaw.adapters.trained import saved_pairs, token_pairs
from deltaw.documents import Document
from deltaw.errors import AdapterError, DeltaWError, MissingExtraError
from deltaw.tensors.names import unwrap
from deltaw.types import Handle, Pair, Reason, Skipped, View

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "default"
# The shared random matrices are drawn for the largest layer, so the largest layers must be there.
LARGEST = frozenset({"VERA", "PVERA", "RANDLORA"})
# The place in the order of the model's modules decides which shared values a module gets.
ORDERED = frozenset({"TINYLORA", "UNILORA"})
# PEFT's injection draws from the global generator and warns about configs; one module at a time.
LOCK = threading.Lock()


@dataclass(frozen=True)
class Bridge:
    """What PEFT needs for any module of one adapter."""

    source: str
    config: Document
    base: Base
    tensors: Mapping[str, Handle]
    siblings: tuple[Stand, ...] = ()

    @property
    def kind(self) -> str:
        """The method, by PEFT's name."""
        return self.config.text("peft_type")

    def merged(self, stand: Stand) -> dict[str, Tensor]:
        """Weight and bias of one module after the merge, float64, as stored.

        Raises:
            DeltaWError: The base or the adapter cannot be read.
            AdapterError: PEFT refuses the adapter, or its tensors do not fit the module.
            MissingExtraError: PEFT needs a library for this method that is not installed.
        """
        with LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch

            state = torch.get_rng_state()
            try:
                return self._merged(stand)
            except DeltaWError:
                raise
            except ImportError as e:
                raise MissingExtraError(f"{self.source}: peft needs another library for {self.kind} ({e})") from e
            except Exception as e:  # what a foreign library makes of foreign values
                why = " ".join(str(e).split()) or type(e).__name__
                raise AdapterError(f"{self.source}: peft cannot merge {self.kind} into {stand.path} ({why})") from e
            finally:
                torch.set_rng_state(state)

    def _merged(self, stand: Stand) -> dict[str, Tensor]:
        import torch
        from peft import get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import set_peft_model_state_dict

        if "target_modules" in self.config and not is_target(self.config, stand.path):
            raise ValueError("the config does not target this module; see target_modules")
        skeleton = build(stand, self.siblings, self.base)
        paths = [s.path for s in {s.path: s for s in (*self.siblings, stand)}.values()]
        model = get_peft_model(skeleton, peft_config(self.config, self.source, paths), ADAPTER)
        wanted = {n: h.read() for n, h in self._tensors_of(stand).items()}
        loaded = set_peft_model_state_dict(model, wanted, ADAPTER)
        self._check(loaded, stand)
        model.eval()
        layer = model.base_model.model.get_submodule(stand.path)
        if not isinstance(layer, BaseTunerLayer):
            raise TypeError("its config does not target this module")
        with torch.no_grad():
            if self.kind == "FROD":
                _frod(layer)
            layer.double()
            layer.merge()
        return {n: p.data.double() for n, p in layer.get_base_layer().named_parameters(recurse=False)}

    def _tensors_of(self, stand: Stand) -> dict[str, Handle]:
        """The module's own tensors and the shared ones."""
        others = tuple(s.path + "." for s in self.siblings if s.path != stand.path)
        out = {}
        for name, handle in self.tensors.items():
            bare = unwrap(name)
            own = bare.startswith(stand.path + ".")
            if own or (shared_tensor(name) and not bare.startswith(others)):
                out[name] = handle
        return out

    def _check(self, loaded: Any, stand: Stand) -> None:
        extra = [k for k in loaded.unexpected_keys if stand.path in k]
        if extra:
            raise ValueError(f"the installed peft has no place for {extra[0]}")
        inside = f"{stand.path}."
        lacks = [k for k in loaded.missing_keys if inside in k and ".base_layer." not in k and self._saved(k)]
        if lacks:
            raise ValueError(f"the file lacks {lacks[0]}")

    def _saved(self, key: str) -> bool:
        """Whether a tensor of this sort is in the file for any module: what no module stores is not part of it."""
        leaf = key.replace(f".{ADAPTER}", "").rsplit(".", 2)[-2:]
        own = [n.split(".") for n in self.tensors if not shared_tensor(n)]
        return any(n[-2:] == leaf or n[-1] == leaf[-1] != "weight" for n in own)


@dataclass(frozen=True)
class Bridged:
    """The update of the weight or the bias of one module."""

    name: str
    shape: tuple[int, int]
    transposed: bool
    adapter_type: str
    rank: int | None
    bridge: Bridge
    stand: Stand
    part: str = "weight"
    expert: int | None = field(default=None, init=False)
    factored: bool = field(default=False, init=False)
    needs_base: bool = field(default=True, init=False)
    scaling: float | None = field(default=None, init=False)

    def delta(self, base: Tensor | None = None) -> Tensor:
        """ΔW (m, n), or (m,) for a bias, float64; W0 is read here, in the layout that PEFT expects.

        Raises:
            AdapterError: PEFT cannot merge it.
        """
        after = self.bridge.merged(self.stand)[self.part]
        delta = after - self.bridge.base[self.name].read().double()
        if base is not None:
            delta = delta.to(base.device)
        if delta.ndim < 2:
            return delta
        delta = delta.reshape(delta.shape[0], -1)
        return delta.T if self.transposed else delta


def _frod(layer: Any) -> None:
    """Take FRoD's U again from W0 and the stored V: at injection V was that of this module, not of its whole category.

    The stored indices came with V; U is the one part that PEFT computes from both and does not save.
    """
    weight = layer.get_base_layer().weight
    V = layer.frod_V[ADAPTER].to(weight.dtype)
    U, _ = layer._calculate_frod_u_and_lambda(V, weight.T if layer.fan_in_fan_out else weight)
    layer.frod_U[ADAPTER] = U.to(weight.dtype)


def shared_tensor(name: str) -> bool:
    """Whether a tensor belongs to the tuner and not to a module: `base_model.vera_A`."""
    return name.startswith("base_model.") and not name.startswith("base_model.model.")


def bridged_pairs(context: Context, tensors: Mapping[str, Handle]) -> list[Pair | Skipped]:
    """The pairs of an adapter of any method but LoRA's.

    Raises:
        AdapterError: The method is not known or has no ΔW, or a module is not in the base.
        MissingExtraError: There is no peft.
    """
    kind = context.config.text("peft_type")
    if kind in NO_DELTA:
        raise AdapterError(f"{context.source}: {kind} has no ΔW: {NO_DELTA[kind]}")
    if kind == "TRAINABLE_TOKENS":
        return _tokens(context, tensors)
    known = installed()
    if kind not in known:
        names = ", ".join(sorted(known))
        raise AdapterError(f"{context.source}: peft_type is {kind!r}, which the installed peft does not know ({names})")
    peft_config(context.config, context.source)
    if kind == "FROD" and not context.config.flag("save_projection", True):
        why = "its projections are not stored, and come from all weights of the base at once; save with save_projection"
        raise AdapterError(f"{context.source}: {why}")
    if context.base is None:
        return [Skipped("all modules", Reason.NEEDS_BASE, f"{kind} is computed from the base's weights")]
    stands, saved, training = _sort(context, context.base, tensors)
    if kind in LARGEST | ORDERED:
        stands = targeted(context, context.base, stands)
    sizes = [*(d for s in stands for d in s.shape), sum(prod(h.shape) for h in tensors.values())]
    refuse_absurd_sizes(context.config, max(sizes))
    siblings = _siblings(context, context.base, kind, stands)
    bridge = Bridge(context.source, context.config, context.base, tensors, siblings)
    out: list[Pair | Skipped] = [Skipped(n, Reason.NOT_A_WEIGHT, "only training needs it") for n in training]
    for stand in stands:
        out.extend(_pairs(bridge, stand))
    out.extend(saved_pairs(context, saved, frozenset()))
    return out


def adapted_modules(kind: str, tensors: Mapping[str, Handle]) -> list[str]:
    """The modules that the tensors of an adapter belong to, by where the method's own names begin.

    Raises:
        MissingExtraError: There is no peft.
    """
    prefix = "trainable_tokens" if kind == "TRAINABLE_TOKENS" else str(getattr(installed().get(kind), "prefix", kind))
    found: dict[str, None] = {}
    for stored in tensors:
        parts = unwrap(stored).split(".")
        own = next((i for i, part in enumerate(parts) if part.startswith(prefix)), 0)
        if own and not shared_tensor(stored):
            found[".".join(parts[:own])] = None
    return list(found)


def _tokens(context: Context, tensors: Mapping[str, Handle]) -> list[Pair | Skipped]:
    found = {m["module"]: h for n, h in tensors.items() if (m := TOKENS.match(unwrap(n)))}
    return token_pairs(context, found, context.config.values.get("token_indices"))


def _sort(
    context: Context, base: Base, tensors: Mapping[str, Handle]
) -> tuple[list[Stand], dict[str, Handle], list[str]]:
    """Adapted modules in the file's order, tensors stored whole, and those of training alone.

    Raises:
        AdapterError: A tensor belongs to no module of the base.
    """
    stands: dict[str, Stand] = {}
    saved: dict[str, Handle] = {}
    training: list[str] = []
    for stored, handle in tensors.items():
        name = unwrap(stored)
        if TRAINING_ONLY.search(name):
            training.append(stored)
            continue
        whole = saved_name(stored)
        module = whole.removesuffix(".weight")
        # A head that the base ties to its embedding; `lm_head.oft_R.weight` is a part of an adapted one.
        tied = module != whole and base.tied(module) and not base.tied(module.rpartition(".")[0])
        if base.find(whole) is not None or tied:
            saved[whole] = handle
            continue
        parts = name.split(".")
        found = next(
            (p for i in range(len(parts) - 1, 0, -1) if base.find((p := ".".join(parts[:i])) + ".weight")), None
        )
        if found is not None:
            stands[found] = stand_in(found, base)
        elif not shared_tensor(stored):
            raise base.missing(".".join(parts[:-1]), context.source)
    return list(stands.values()), saved, training


def targeted(context: Context, base: Base, stands: list[Stand]) -> list[Stand]:
    """All modules that the config targets, in the base's order: the file need not name each of them."""
    found = {s.path: s for s in stands}
    for name in base.checkpoint.tensors:
        path = name.removesuffix(".weight")
        if name.endswith(".weight") and path not in found and is_target(context.config, path):
            stand = stand_in(path, base)
            if stand.linear:
                found[path] = stand
    order = {n: i for i, n in enumerate(base.checkpoint.tensors)}
    return sorted(found.values(), key=lambda s: order[s.weight])


def _siblings(context: Context, base: Base, kind: str, stands: list[Stand]) -> tuple[Stand, ...]:
    """The modules that must stand beside any one for its shared state to come out right.

    Raises:
        AdapterError: The order of the model's modules decides, and the base's format does not keep it.
    """
    if kind in LARGEST:
        return tuple({s.path: s for i in (0, 1) for s in [max(stands, key=lambda s: s.outputs_inputs[i])]}.values())
    if kind not in ORDERED:
        return ()
    stored = kind == "UNILORA" and context.config.says("save_indices")
    tied = kind == "TINYLORA" and context.config.number("weight_tying", 0) == 1.0
    if not (stored or tied or base.checkpoint.format.startswith(("memory", "pytorch"))):
        raise AdapterError(
            f"{context.source}: {kind} gives its shared values to modules by their order in the model, "
            f"which {base.source} ({base.checkpoint.format}) does not keep; give the "
            "base as a state dict or pytorch_model.bin"
        )
    return tuple(stands)


def _pairs(bridge: Bridge, stand: Stand) -> list[Pair]:
    rank = bridge.config.values.get("r")
    names = [("weight", stand.weight), *([("bias", stand.bias)] if stand.bias and bridge.kind in CHANGES_BIAS else [])]
    out = []
    for part, name in names:
        handle = bridge.base[name]
        m, n = stand.outputs_inputs if part == "weight" else (handle.shape[0], 1)
        transposed = stand.kind == "Conv1D" and part == "weight"
        update = Bridged(
            name=name,
            shape=(m, n),
            transposed=transposed,
            adapter_type=bridge.kind.lower(),
            rank=rank if isinstance(rank, int) and rank > 0 else None,
            bridge=bridge,
            stand=stand,
            part=part,
        )
        out.append(Pair(name, handle, update, View(transposed=transposed)))
    return out
