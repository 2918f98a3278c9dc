"""Reads a pickle as data: a machine of its own that builds descriptions and can run nothing.

Python's unpickler imports what a pickle names and calls it. This one knows a few operations and a caller's list of
names; each name stands for a function of ours that describes what would have been made. A mapping comes as ``Items``,
pairs in their order, because hashing what a stranger nested can take for ever. Used for the pickles that torch and
torch.distributed.checkpoint write around their tensors.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Final, NoReturn

from archaeologist.checkpoints.header import shown

MAX_OPERATIONS: Final = 4_000_000
"""A tensor takes about 40, so that 100,000 are read. Each makes one small object at most."""
MAX_BYTES: Final = 64_000_000
_LONGEST_LINE: Final = 1024
_OPERATION_OF: Final = {operation.code: operation for operation in pickletools.opcodes}

Make = Callable[..., object]


class PickleBrokenError(Exception):
    """It is no pickle as it should be; the message says what is wrong."""


class PickleRefusedError(Exception):
    """It asks for what is not on the list; the message names it."""


class Items(list[tuple[object, object]]):
    """A mapping's pairs. A key may stand twice: the last one counts."""

    def named(self) -> dict[str, object]:
        """Those whose key is a text."""
        return {key: value for key, value in self if isinstance(key, str)}


class Made:
    """What a listed class describes, and the state that the pickle gives it afterwards."""

    def __init__(self, name: str, arguments: tuple[object, ...]) -> None:
        self.name = name
        self.arguments = arguments
        self.state: object = None

    def fields(self) -> dict[str, object]:
        """Its attributes as far as the pickle tells them."""
        state = self.state
        if isinstance(state, tuple) and state:  # attributes in a dictionary, and those in slots
            state = state[0]
        return state.named() if isinstance(state, Items) else {}


class _Name:
    """A listed name, before it is called."""

    def __init__(self, name: str, make: Make) -> None:
        self.name = name
        self.make = make


class _Mark:
    """Where arguments begin on the stack."""


def class_named(name: str) -> Make:
    """A listed class that takes its attributes from the pickle."""
    return lambda *arguments: Made(name, arguments)


def constant(value: object) -> Make:
    """A listed name that stands for a value and is never called."""
    return _Constant(value)


def member_of(*owners: str) -> Make:
    """``getattr``, of listed classes alone: so some Pythons, 3.11.2 for one, write members of enumerations."""

    def make(owner: object, name: object) -> Made:
        if not isinstance(owner, _Name) or owner.name not in owners or not isinstance(name, str):
            msg = f"its pickle takes {shown(name)} of {shown(owner)}"
            raise PickleRefusedError(msg)
        return Made(name, ())

    return make


class _Constant:
    def __init__(self, value: object) -> None:
        self.value = value

    def __call__(self, *_: object) -> NoReturn:
        msg = f"{shown(self.value)} is called, and is no function"
        raise PickleBrokenError(msg)


def load(stream: BinaryIO, names: Mapping[str, Make], *, persistent: Make | None = None) -> object:
    """What one pickle describes; the stream stands behind it afterwards.

    Args:
        stream: Where it begins.
        names: What it may name: ``module.name`` → how that is described. None of it is imported.
        persistent: What becomes of references to what lies outside the pickle.

    Raises:
        PickleBrokenError: It is damaged, or larger than is read.
        PickleRefusedError: It names something else, or does something that no file of weights does.
    """
    try:
        return _run(stream, _Machine(names, persistent))
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, UnicodeError) as error:
        msg = f"its pickle is damaged: {type(error).__name__}: {str(error)[:200]}"
        raise PickleBrokenError(msg) from error


def _run(stream: BinaryIO, machine: "_Machine") -> object:
    for _ in range(MAX_OPERATIONS):
        operation = _OPERATION_OF.get(stream.read(1).decode("latin-1"))
        if operation is None:
            msg = "its pickle ends without a result, or is none"
            raise PickleBrokenError(msg)
        # Known before its argument is decoded: texts with escapes, numbers in digits are for others.
        if operation.name not in KNOWN:
            msg = f"its pickle uses {operation.name}, which no file of weights needs"
            raise PickleRefusedError(msg)
        argument = _argument(operation, stream)
        if operation.name == "STOP":
            return machine.result()
        machine.step(operation.name, argument)
    msg = f"its pickle has more than {MAX_OPERATIONS} operations"
    raise PickleBrokenError(msg)


def _argument(operation: pickletools.OpcodeInfo, stream: BinaryIO) -> Any:
    if operation.name == "GLOBAL":
        # pickletools would undo escapes, which no name has.
        return ".".join(_line(stream) for _ in range(2))
    return operation.arg.reader(stream) if operation.arg else None


def _line(stream: BinaryIO) -> str:
    line = stream.readline(_LONGEST_LINE)
    if not line.endswith(b"\n"):
        msg = "its pickle has a name without an end"
        raise PickleBrokenError(msg)
    return line[:-1].decode()


class _Machine:
    """Stack and memo of one pickle. Every operation that is not handled here is refused."""

    def __init__(self, names: Mapping[str, Make], persistent: Make | None) -> None:
        self._names = names
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> object:
        """What is left at the end."""
        (found,) = self._stack
        return found

    def step(self, name: str, argument: Any) -> None:
        """Does one operation, one of ``KNOWN``."""
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _FRESH:
            self._stack.append(_FRESH[name]())
        elif name in _TUPLES:
            self._tuple(_TUPLES[name])
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)

    def put(self, argument: int) -> None:
        """Remembers the top under a number."""
        self._memo[argument] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        """Remembers the top under the next number."""
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, argument: int) -> None:
        """Puts back what was remembered."""
        self._stack.append(self._memo[argument])

    def tuple_to_mark(self, _: Any) -> None:
        """A tuple of all since the mark."""
        self._stack.append(tuple(self._to_mark()))

    def append(self, _: Any) -> None:
        """One value for a list."""
        self._extend([self._stack.pop()])

    def appends(self, _: Any) -> None:
        """Values for a list."""
        self._extend(self._to_mark())

    def set_item(self, _: Any) -> None:
        """One pair for a mapping."""
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def set_items(self, _: Any) -> None:
        """Pairs for a mapping."""
        self._update(self._to_mark())

    def name(self, argument: str) -> None:
        """A name in the pickle's own text."""
        self._stack.append(self._found(argument))

    def stacked_name(self, _: Any) -> None:
        """A name from the stack."""
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._found(f"{module}.{name}"))

    def call(self, _: Any) -> None:
        """What a listed name makes of its arguments."""
        arguments, callee = self._stack.pop(), self._stack.pop()
        if not isinstance(callee, _Name) or not isinstance(arguments, tuple):
            msg = f"its pickle calls {shown(callee)}, which is no name on the list"
            raise PickleRefusedError(msg)
        self._stack.append(callee.make(*arguments))

    def build(self, _: Any) -> None:
        """Attributes of what was made; those of a mapping are not needed."""
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Made):
            target.state = state
        elif not isinstance(target, Items):
            msg = f"its pickle sets attributes of {shown(target)}"
            raise PickleRefusedError(msg)

    def persistent_id(self, _: Any) -> None:
        """A reference to what lies outside."""
        if self._persistent is None:
            msg = "its pickle refers to what lies outside it"
            raise PickleRefusedError(msg)
        self._stack.append(self._persistent(self._stack.pop()))

    def _found(self, name: str) -> object:
        make = self._names.get(name)
        if make is None:
            msg = f"its pickle names {shown(name)}, and weights need nothing of the kind"
            raise PickleRefusedError(msg)
        return make.value if isinstance(make, _Constant) else _Name(name, make)

    def _tuple(self, size: int) -> None:
        start = len(self._stack) - size
        if start < 0:
            msg = "its pickle makes a tuple of values that are not there"
            raise PickleBrokenError(msg)
        self._stack[start:] = [tuple(self._stack[start:])]

    def _to_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while not isinstance(self._stack[place], _Mark):
            place -= 1
            if place < 0:
                msg = "its pickle has no mark where one belongs"
                raise PickleBrokenError(msg)
        found = self._stack[place + 1 :]
        del self._stack[place:]
        return found

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            msg = f"its pickle appends to {shown(target)}"
            raise PickleBrokenError(msg)
        target.extend(values)

    def _update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, Items) or len(values) % 2:
            msg = f"its pickle sets items of {shown(target)}"
            raise PickleBrokenError(msg)
        target.extend(zip(values[::2], values[1::2], strict=True))


_VALUES: Final = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES"}
    | {"SHORT_BINBYTES"}
)
_FRESH: Final[dict[str, Callable[[], object]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": Items,
    "EMPTY_SET": list,
    "MARK": _Mark,
}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED: Final = frozenset({"PROTO", "FRAME", "STOP"})
_OPERATIONS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_to_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stacked_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}
KNOWN: Final = frozenset({*_VALUES, *_FRESH, *_TUPLES, *_IGNORED, *_OPERATIONS})
