"""Which mapping of a pickle holds the weights: the state dict in whatever a trainer saved around it.

One is taken by its usual name, or because it is the only one; a tensor at the top (`best_val_loss`) hides none.
Optimizer and scheduler state never is one. What else holds weights (`ema`) is named, and can be chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from deltaw.checkpoints.pickles.arrays import Array
from deltaw.checkpoints.pickles.machine import Inert, PickleError, RefusalError
from deltaw.checkpoints.pickles.rebuild import RawTensor, Refused, Tensor
from deltaw.types import Reason, counted

USUAL = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "generator", "params",
    "weights", "model_dict", "state", "model_weights", "net_state_dict", "network_state_dict", "model_sd", "backbone",
    "policy", "student", "g", "G", "netG",
)  # fmt: skip
AVERAGES = re.compile(
    r"(^|_)(ema|teacher|target|momentum|shadow|swa|averaged?|average_model|old|prev|previous|best)(_|$)", re.IGNORECASE
)
TRAINING = re.compile(
    r"(^|_)(optim\w*|opt|lr|sched\w*|scaler|amp|rng\w*|random\w*|callbacks?|loops|hparams|hyper_parameters|loss\w*|"
    r"metrics?|grads?|exp_avg\w*|fp32_flat_groups|datamodule|dataloader\w*|sampler)(_|$)|^(discriminator_optim|_extra)",
    re.IGNORECASE,
)
BARE = "tensor"  # the name of the tensor in a file that holds nothing else
MAX_DEPTH = 64
MAX_VISITS = 2_000_000
MAX_NAME = 1024  # characters of a tensor's name


@dataclass(frozen=True)
class PickledWeights:
    """The tensors that were taken, by name; where they were found; and what a reader should know."""

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...]


def find_weights(content: object, wanted: str = "") -> PickledWeights:
    """The weights in what a pickle describes.

    Args:
        content: What the pickle describes.
        wanted: The mapping to take (`ema`, `model.ema`); empty to find it.

    Raises:
        RefusalError: There are no weights, or not those that were wanted.
    """
    if isinstance(content, (RawTensor, Refused, Array)) and not wanted:
        return PickledWeights({BARE: content}, ())
    path, node = ((), content) if not wanted else _wanted(content, wanted)
    notes: list[str] = []
    usual = False
    while True:
        leaves, inner = _direct(node), dict(_inner(node))
        step = _step(node, leaves, inner, usual)
        if step is None:
            break
        notes.extend(_beside(path, step, leaves, inner))
        usual = usual or step in USUAL
        path, node = (*path, step), _children(node)[step]
    tensors = flatten(node)
    others = {k for k in inner if AVERAGES.search(k)} if leaves or len(inner) > 1 else set()
    if any(n.split(".", 1)[0] not in others for n in tensors):
        notes.extend(_also(path, k, inner[k]) for k in sorted(others))
        tensors = {n: t for n, t in tensors.items() if n.split(".", 1)[0] not in others}
    if not tensors:
        raise RefusalError(f"no tensors found (it holds: {_shown(content)}); expected a state dict")
    if path:
        notes.insert(0, f"took the tensors from {'.'.join(path)!r}")
    if isinstance(node, Inert):
        notes.append(f"a whole {node.name[:80]}: its tensors were read, and nothing of it was run")
    return PickledWeights(tensors, tuple(notes))


def _step(node: object, leaves: dict[str, Tensor], inner: dict[str, int], usual: bool) -> str | None:
    """The mapping inside `node` that holds the weights; None where `node` itself is that mapping."""
    if isinstance(node, Inert) and _modules(node) is not None:
        return None  # a module's parts are parts of one model, whatever they are called
    named = next((k for k in USUAL if k in inner), None)
    if usual:
        return named if len(inner) == 1 and not leaves and named is not None else None
    if named is not None:
        return named
    plain = [k for k in inner if not AVERAGES.search(k)]
    only = plain or list(inner)
    return only[0] if len(only) == 1 and all(map(_no_weight, leaves.values())) else None


def _no_weight(tensor: Tensor) -> bool:
    """Whether a tensor beside a mapping is a measurement or a counter: one number, or whole numbers."""
    return prod(tensor.shape) <= 1 or tensor.dtype.startswith(("int", "uint", "bool"))


def _beside(path: tuple[str, ...], step: str, leaves: Mapping[str, Tensor], inner: Mapping[str, int]) -> Iterator[str]:
    if leaves:
        shown = ", ".join(list(leaves)[:5]) + (", …" if len(leaves) > 5 else "")
        yield f"ignored {counted(len(leaves), 'tensor')} beside {step!r} ({shown[:200]})"
    for other, count in inner.items():
        if other != step:
            yield _also(path, other, count)


def _also(path: tuple[str, ...], name: str, count: int) -> str:
    chosen = ".".join((*path, name))
    return f"{chosen!r} holds {counted(count, 'tensor')}, too, and was not read; choose it with FILE::{chosen}"


def _wanted(content: object, wanted: str) -> tuple[tuple[str, ...], object]:
    """A mapping by its path, or by its last name where only one has it.

    Raises:
        RefusalError: There is no such mapping.
    """
    found: list[tuple[tuple[str, ...], object]] = []
    every: list[str] = []
    queue: list[tuple[tuple[str, ...], object]] = [((), content)]
    seen: set[int] = set()
    while queue:
        path, node = queue.pop(0)
        if path and (".".join(path) == wanted or path[-1] == wanted):
            found.append((path, node))
        if id(node) in seen or len(path) > 4 or len(seen) > 10_000:
            continue
        seen.add(id(node))
        children = _children(node)
        every.extend(".".join((*path, k)) for k in children if not path and _direct(children[k]))
        queue.extend(((*path, k), v) for k, v in children.items() if _children(v))
    exact = [f for f in found if ".".join(f[0]) == wanted]
    chosen = (exact or found)[:2]
    if not chosen or (len(chosen) > 1 and not exact):
        many = "more than one mapping has that name" if chosen else "there is no mapping of that name"
        raise RefusalError(f"::{wanted[:80]}: {many}; those with tensors are {', '.join(every[:8]) or 'none'}")
    return chosen[0]


def _inner(node: object) -> Iterator[tuple[str, int]]:
    """The mappings in `node` that hold weights, with the number of their tensors."""
    module = isinstance(node, Inert) and _modules(node) is not None
    for name, value in _children(node).items():
        if _children(value) and (module or not _is_training(name, value)):
            count = len(flatten(value))
            if count:
                yield name, count


def _is_training(name: str, value: object) -> bool:
    """Whether a mapping is the state of an optimizer, a scheduler or the like."""
    keys = _children(value)
    return bool(TRAINING.search(name)) or {"state", "param_groups"} <= set(keys)


def _direct(node: object) -> dict[str, Tensor]:
    return {k: v for k, v in _children(node).items() if isinstance(v, (RawTensor, Refused, Array))}


def flatten(node: object) -> dict[str, Tensor]:
    """Every tensor in a mapping by its dotted name, without optimizer state.

    Arrays count only where there are no tensors of torch's.

    Raises:
        PickleError: It is nested deeper, or holds more, than any checkpoint; or a name is longer.
    """
    out: dict[str, Tensor] = {}
    stack: list[tuple[str, object, int]] = [("", node, 0)]
    above: list[int] = []
    visits = 0
    while stack:
        prefix, value, depth = stack.pop()
        del above[depth:]
        if isinstance(value, (RawTensor, Refused, Array)):
            out[prefix or BARE] = value
            continue
        if id(value) in above:  # a mapping that holds itself
            continue
        above.append(id(value))
        module = isinstance(value, Inert) and _modules(value) is not None
        children = _children(value)
        visits += 1 + len(children)
        if visits > MAX_VISITS or depth > MAX_DEPTH:
            raise PickleError("mappings that are nested deeper, or unfold to more, than any checkpoint")
        for key, child in reversed(children.items()):
            name = f"{prefix}.{key}" if prefix else key
            if len(name) > MAX_NAME and isinstance(child, (RawTensor, Refused, Array)):
                raise PickleError(f"a tensor's name of {len(name):,} characters")
            if isinstance(child, (RawTensor, Refused, Array)) or (
                len(name) <= MAX_NAME and (module or not _is_training(key, child))
            ):
                stack.append((name, child, depth + 1))
    torch = {n: t for n, t in out.items() if not isinstance(t, Array)}
    return {**(torch or out)}


def _modules(node: Inert) -> dict[object, object] | None:
    """The submodules of a whole `nn.Module`; None where an object is none."""
    state = node.state if isinstance(node.state, dict) else {}
    inner = state.get("_modules")
    return inner if isinstance(inner, dict) and isinstance(state.get("_parameters"), dict) else None


def _children(node: object) -> dict[str, object]:  # whatever a pickle holds
    """What a mapping, a list or an object holds, by name; texts win over numbers that are written the same."""
    if isinstance(node, dict):
        return _named(node)
    if isinstance(node, (list, tuple)):
        return {str(i): v for i, v in enumerate(node)} if any(map(_holds, node)) else {}
    if not isinstance(node, Inert):
        return {}
    modules = _modules(node)
    if modules is not None:
        state = node.state
        assert isinstance(state, dict)
        buffers = state.get("_buffers")
        transient = state.get("_non_persistent_buffers_set")
        kept = set(map(str, transient)) if isinstance(transient, list) else set()
        named = _named(state["_parameters"])
        if isinstance(buffers, dict):
            named |= {k: v for k, v in _named(buffers).items() if k not in kept}
        return named | _named(modules)
    if node.items:
        return _named(node.items)
    return _named(node.state) if isinstance(node.state, dict) else {}


def _holds(value: object) -> bool:
    return isinstance(value, (RawTensor, Refused, Array, dict, Inert))


def _named(mapping: Mapping[object, object]) -> dict[str, object]:  # whatever a pickle holds
    named = {str(k): v for k, v in mapping.items() if isinstance(k, (str, int))}
    for k in [k for k in mapping if isinstance(k, int) and str(k) in mapping]:
        named[str(k)], value = mapping[str(k)], mapping[k]
        if isinstance(value, (RawTensor, Refused, Array)):
            detail = f"the file has two tensors called {str(k)!r}, by a number and by a text; rename one"
            named[f"{k} (number)"] = Refused(value.shape, value.dtype, Reason.UNSUPPORTED, "a name twice", detail)
    return named


def _shown(content: object) -> str:
    if isinstance(content, dict):
        return ", ".join(str(k)[:60] for k in list(content)[:5] if isinstance(k, (str, int))) or "nothing"
    return content.name[:80] if isinstance(content, Inert) else type(content).__name__
