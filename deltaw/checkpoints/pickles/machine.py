"""A pickle read as what it is, a program for a stack machine, with nothing in it that could run.

`pickletools.genops` splits the bytes into opcodes; this machine moves plain values. A global is a name and is never
imported or looked up; calling one asks `rebuild` for the few that make tensors, and makes an inert stand-in of every
other. No opcode allocates more than the bytes that it is made of.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

MAX_OPCODES = 20_000_000  # some 300,000 tensors; more is no checkpoint
MAX_NAME = 512  # characters of a module or class
# What only an attack calls when a file is loaded. Nothing is ever called here; such a file is refused by name.
DANGEROUS_MODULES = frozenset({
    "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "pty", "commands", "webbrowser",
    "ctypes", "builtins", "__builtin__",
})  # fmt: skip
# Of the built-ins only what runs or reaches something: `set`, `slice` and `getattr` are in honest pickles.
DANGEROUS_BUILTINS = frozenset({
    "eval", "exec", "execfile", "compile", "open", "file", "__import__", "breakpoint", "input", "apply", "exit", "quit",
})  # fmt: skip


class PickleError(ValueError):
    """The bytes are no pickle that makes sense, or one that would attack whoever loads it."""


class RefusalError(PickleError):
    """The same, where the message already says what to do."""


@dataclass(frozen=True)
class Global:
    """The name of a class or function: `collections.OrderedDict`."""

    name: str


@dataclass(eq=False, repr=False)
class Inert:
    """What stands for an object that is not built: the name of its class or function, and what it was given."""

    name: str
    args: object = ()
    state: object = None
    items: dict[object, object] = field(default_factory=dict)
    elements: list[object] = field(default_factory=list)


@dataclass(frozen=True)
class Persistent:
    """A reference to something outside of the pickle; torch's storages are such."""

    id: object


Rebuild = Callable[[str, object], object]
Build = Callable[[object, object], None]
MARK = object()
PUSHED = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "FLOAT", "BINFLOAT",
})  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NOTHING = frozenset({"PROTO", "FRAME"})


class Machine:
    """The stack, the memo and the marks of one pickle.

    Args:
        rebuild: What a call of a global makes of its arguments; `Inert` for everything that it does not know.
        build: What a state does to an object that `rebuild` made.
    """

    def __init__(self, rebuild: Rebuild, build: Build) -> None:
        self.rebuild, self.build = rebuild, build
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def run(self, file: BinaryIO) -> object:
        """The value of the pickle that starts where `file` stands; afterwards it stands behind it.

        Raises:
            PickleError: It is malformed or would attack whoever loads it.
        """
        self.stack, self.memo = [], {}
        with warnings.catch_warnings():  # of an escape in a text of protocol 0 that Python does not know
            warnings.simplefilter("ignore", DeprecationWarning)
            return self._run(file)

    def _run(self, file: BinaryIO) -> object:
        try:
            for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
                if count > MAX_OPCODES:
                    raise PickleError(f"more than {MAX_OPCODES:,} opcodes")
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, arg)
        except PickleError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RecursionError) as e:
            raise PickleError(f"no pickle that makes sense ({type(e).__name__})") from e
        raise PickleError("the pickle has no end")

    def _step(self, name: str, arg: object) -> None:
        push = self.stack.append
        if name in PUSHED:
            push(arg)
        elif name in {"BINPUT", "LONG_BINPUT", "PUT"}:
            assert isinstance(arg, int)
            self.memo[arg] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name in {"BINGET", "LONG_BINGET", "GET"}:
            assert isinstance(arg, int)
            push(self.memo[arg])
        elif name in CONSTANTS:
            push(CONSTANTS[name])
        elif name in EMPTY:
            push(EMPTY[name]())
        elif name == "MARK":
            push(MARK)
        elif name in TUPLES:
            push(tuple(reversed([self._pop() for _ in range(TUPLES[name])])))
        elif name == "GLOBAL":
            push(named(*str(arg).split(" ", 1)))
        elif name in NOTHING:
            pass
        else:
            self._rarer(name, arg)

    def _rarer(self, name: str, arg: object) -> None:
        push = self.stack.append
        if name in {"SETITEMS", "SETITEM"}:
            values = self._marked() if name == "SETITEMS" else list(reversed([self._pop(), self._pop()]))
            set_items(self._top(), values)
        elif name in {"APPENDS", "APPEND", "ADDITEMS"}:
            values = [self._pop()] if name == "APPEND" else self._marked()
            append(self._top(), values)
        elif name == "BUILD":
            state = self._pop()
            self._set_state(self._top(), state)
        elif name in {"REDUCE", "NEWOBJ"}:
            args = self._pop()
            push(self._call(self._pop(), args))
        elif name == "NEWOBJ_EX":
            kwargs, args = self._pop(), self._pop()
            push(self._call(self._pop(), args, kwargs))
        elif name in {"OBJ", "INST"}:
            values = self._marked()
            target = named(*str(arg).split(" ", 1)) if name == "INST" else values.pop(0)
            push(self._call(target, tuple(values)))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            if not isinstance(module, str) or not isinstance(attribute, str):
                raise PickleError("a global without a name")
            push(named(module, attribute))
        elif name in {"BINPERSID", "PERSID"}:
            push(self.rebuild("persistent", self._pop() if name == "BINPERSID" else arg))
        elif name in {"TUPLE", "LIST", "FROZENSET", "DICT"}:
            push(gathered(name, self._marked()))
        elif name == "DUP":
            push(self._top())
        elif name == "POP":
            self.stack.pop()
        elif name == "POP_MARK":
            self._marked()
        else:  # extension codes and buffers outside of the file
            raise PickleError(f"the opcode {name}, which no checkpoint needs")

    def _pop(self) -> object:
        value = self.stack.pop()
        if value is MARK:
            raise PickleError("a mark where a value was expected")
        return value

    def _top(self) -> object:
        if self.stack[-1] is MARK:
            raise PickleError("a mark where a value was expected")
        return self.stack[-1]

    def _marked(self) -> list[object]:
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:  # an IndexError where there is none, as `at` passes the first
            at -= 1
            if at < 0:
                raise PickleError("no mark where one was expected")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def _call(self, target: object, args: object, kwargs: object = None) -> object:
        if not isinstance(target, Global):
            return Inert(getattr(target, "name", type(target).__name__), args, kwargs)
        module, _, attribute = target.name.rpartition(".")
        root = module.split(".", 1)[0]
        if root in DANGEROUS_MODULES and (root not in {"builtins", "__builtin__"} or attribute in DANGEROUS_BUILTINS):
            raise RefusalError(
                f"it would call {target.name} when loaded, which could run code; nothing of it was run, and it is "
                "refused: have its author save it as safetensors"
            )
        return self.rebuild(target.name, args)

    def _set_state(self, target: object, state: object) -> None:
        if isinstance(target, Inert):
            target.state = state
        else:
            self.build(target, state)


def named(module: str, attribute: str = "") -> Global:
    """A global by its two names.

    Raises:
        PickleError: They are longer than any honest name.
    """
    if len(module) > MAX_NAME or len(attribute) > MAX_NAME:
        raise PickleError(f"a global with a name of {len(module) + len(attribute):,} characters")
    return Global(f"{module}.{attribute}")


def key(value: object) -> object:
    """A value as a key: texts and numbers as they are, everything else by identity (a nested tuple is slow to hash)."""
    return value if isinstance(value, (str, int, float, bytes, type(None))) else Inert("key", value)


def set_items(target: object, values: list[object]) -> None:
    """Put keys and values into a mapping, or into what stands for one.

    Raises:
        PickleError: It is no mapping.
    """
    into = target.items if isinstance(target, Inert) else target
    if not isinstance(into, dict) or len(values) % 2:
        raise PickleError(f"items for a {type(target).__name__}")
    into.update((key(k), v) for k, v in zip(values[::2], values[1::2], strict=True))


def append(target: object, values: list[object]) -> None:
    """Put values into a list, or into what stands for one.

    Raises:
        PickleError: It is no list.
    """
    into = target.elements if isinstance(target, Inert) else target
    if not isinstance(into, list):
        raise PickleError(f"elements for a {type(target).__name__}")
    into.extend(values)


def gathered(name: str, values: list[object]) -> object:
    """What the values behind a mark become."""
    if name == "TUPLE":
        return tuple(values)
    if name == "DICT":
        out: dict[object, object] = {}
        set_items(out, values)
        return out
    return values
