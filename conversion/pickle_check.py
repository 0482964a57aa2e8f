"""What a pickle of tensors may do. The check follows its instructions and builds nothing.

torch's restricted unpickler runs no code of a file, but it takes any memory that the file asks for: `bytearray(10**11)`
is 60 bytes of pickle. And it may take forever, or end the process, where the key of a dictionary is a deep tuple.
"""

import pickletools
from dataclasses import dataclass, field
from typing import Any

from showo_hf.utils.messages import printable


MAX_BYTES = 2**21  # the pickle of 2,000 tensors takes less than 1 MB
MAX_INSTRUCTIONS = 2**18  # a tensor takes about 30

ORDERED_DICT = "collections OrderedDict"
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
KINDS_OF_NUMBERS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
STORAGES = {f"torch {kind}Storage" for kind in KINDS_OF_NUMBERS}
GLOBALS = {ORDERED_DICT, TENSOR, PARAMETER, *STORAGES}

#: What a value on the unpickler's stack is: a word, or the words for the parts of a tuple.
Kind = str | tuple[str, ...]
CONSTANTS: dict[str, Kind] = {
    "NONE": "none",
    "NEWTRUE": "flag",
    "NEWFALSE": "flag",
    "BININT": "integer",
    "BININT1": "integer",
    "BININT2": "integer",
    "LONG1": "integer",
    "BINFLOAT": "number",
    "BINUNICODE": "text",
    "EMPTY_TUPLE": (),
    "EMPTY_LIST": "list",
    "EMPTY_DICT": "dict",
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
KEYS = ("text", "integer")


class PickleError(ValueError):
    """A pickle does something else than to name tensors. The message says what."""


@dataclass
class Stack:
    """The unpickler's stack, with what each value is instead of the value."""

    kinds: list[Kind] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Kind] = field(default_factory=dict)

    def pop(self, count: int = 1) -> list[Kind]:
        """The last `count` values. They stand above the last mark, as in a pickle that was written by a pickler."""
        if len(self.kinds) - count < (self.marks[-1] if self.marks else 0):
            raise PickleError("an instruction without its values")
        found = self.kinds[len(self.kinds) - count :]
        del self.kinds[len(self.kinds) - count :]
        return found

    def pop_to_mark(self) -> list[Kind]:
        if not self.marks:
            raise PickleError("an instruction without its mark")
        found = self.kinds[self.marks[-1] :]
        del self.kinds[self.marks.pop() :]
        return found

    def below(self, kind: str, what: str):
        """Raise `PickleError` unless the last value is of a kind."""
        [found] = self.pop()
        if found != kind:
            raise PickleError(f"{what} that is no {kind}")
        self.kinds.append(found)

    def run(self, name: str, argument: Any):
        """Do one instruction, but STOP."""
        if name in CONSTANTS:
            self.kinds.append(CONSTANTS[name])
        elif name == "MARK":
            self.marks.append(len(self.kinds))
        elif name in ("BINPUT", "LONG_BINPUT"):
            [kind] = self.pop()
            self.kinds.append(kind)
            self.memo[argument] = kind
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise PickleError("a value that was never stored")
            self.kinds.append(self.memo[argument])
        elif name in TUPLES:
            self.kinds.append(packed(self.pop(TUPLES[name])))
        elif name == "TUPLE":
            self.kinds.append(packed(self.pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            self.pop() if name == "APPEND" else self.pop_to_mark()
            self.below("list", "a value appended to something")
        elif name in ("SETITEM", "SETITEMS"):
            items = self.pop(2) if name == "SETITEM" else self.pop_to_mark()
            if len(items) % 2 or any(key not in KEYS for key in items[::2]):
                raise PickleError("a key of a dictionary that is no text")
            self.below("dict", "an entry of something")
        elif name == "GLOBAL":
            if argument not in GLOBALS:
                raise PickleError(f"the name {argument.replace(' ', '.')}")
            self.kinds.append(argument)
        elif name == "BINPERSID":
            self.kinds.append(storage(*self.pop()))
        elif name == "REDUCE":
            self.kinds.append(called(*self.pop(2)))
        elif name == "BUILD":
            if self.pop() != ["dict"]:
                raise PickleError("attributes that are no dict")
            self.below("dict", "attributes of something")
        else:
            raise PickleError(f"the instruction {name}")


def packed(kinds: list[Kind]) -> tuple[str, ...]:
    """The kind of a tuple of values of these kinds. Tuples in it are "sizes" if they hold nothing but integers."""

    def word(kind: Kind) -> str:
        if isinstance(kind, str):
            return kind
        return "sizes" if all(part == "integer" for part in kind) else "tuple"

    return tuple(word(kind) for kind in kinds)


def storage(name: Kind) -> str:
    """What stands for the numbers of a tensor: ("storage", a class, the record's name, a device, how many numbers)."""
    if not isinstance(name, tuple) or len(name) != 5 or name[1] not in STORAGES:
        raise PickleError("numbers that are named in another way than torch does")
    if (name[0], *name[2:]) != ("text", "text", "text", "integer"):
        raise PickleError("numbers that are named in another way than torch does")
    return "storage"


def called(function: Kind, arguments: Kind) -> str:
    """The kind of what a function returns."""
    if function == ORDERED_DICT and arguments == ():
        return "dict"
    if function == TENSOR and arguments == ("storage", "integer", "sizes", "sizes", "flag", "dict"):
        return "tensor"
    if function == PARAMETER and arguments == ("tensor", "flag", "dict"):
        return "tensor"
    raise PickleError(f"a call of {str(function).replace(' ', '.')} with other values than torch writes")


def check_pickle(content: bytes):
    """
    Check that a pickle holds tensors, numbers, texts, and tuples, lists and dictionaries of them.

    The keys of dictionaries are texts or integers, tensors have their numbers in the archive, and nothing is called but
    what builds tensors and dictionaries.

    Raises:
        PickleError: if it does anything else, or is larger than `MAX_BYTES` or `MAX_INSTRUCTIONS`.
    """
    if len(content) > MAX_BYTES:
        raise PickleError(f"a pickle of {len(content):,} bytes, and at most {MAX_BYTES:,} are read")
    stack = Stack()
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(content)):
            if number == MAX_INSTRUCTIONS:
                raise PickleError(f"more than {MAX_INSTRUCTIONS:,} instructions")
            if instruction.name == "STOP":
                if len(stack.kinds) != 1 or stack.marks:
                    raise PickleError("another number of values than one")
            elif instruction.name != "PROTO":
                stack.run(instruction.name, argument)
    except PickleError:
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        raise PickleError(f"{type(error).__name__}: {printable(error)}") from error
