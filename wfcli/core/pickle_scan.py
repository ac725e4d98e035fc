"""What a pickle would do, told from its operations before any is run: calls that swell, work without end.

torch's safe unpickler runs nothing but what it lists, but what it lists can be made to take all memory (a bytearray of
any size) or all time (a key of tuples of tuples, whose hash has 2 ** depth steps), in a file of a few hundred bytes.
"""

from __future__ import annotations

import mmap
from typing import Any

MOST_OPERATIONS = 4_000_000
MOST_WORK = 1 << 23  # values that calls and keys have to go through, all of them together
LETTERS = 16  # of a text that count as one value
SWELLING = (
    "builtins.bytearray",
    "__builtin__.bytearray",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_device_tensor_from_numpy",
)
ENCODE, FROM_TYPE, REBUILD = "_codecs.encode", "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_"

# Operation -> bytes of its argument, which is passed over; what it puts on the stack is a plain value.
_PLAIN = {b"N": 0, b"\x88": 0, b"\x89": 0, b"J": 4, b"K": 1, b"M": 2, b"G": 8}
_EMPTY = (b"]", b"}", b"\x8f", b")")
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_MARK = object()


class _Value:
    """What is known of a value: how many it consists of, what word it is or what words a tuple consists of.

    `held`: another value has it in it, and has counted it.
    """

    __slots__ = ("held", "size", "word", "words")

    def __init__(self, size: int = 1, word: str = "") -> None:
        self.size, self.word, self.held = size, word, False
        self.words: list[str] = []


def scan_pickle(data: bytes | mmap.mmap, begin: int = 0) -> int:
    """Go through one pickle without running it and return where it ends.

    It stops early, without an error, where torch's unpickler stops with one.

    Raises:
        ValueError: it would take memory or time without bounds; the text says why.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    work, at = 0, begin
    try:
        for _ in range(MOST_OPERATIONS):
            operation, at = data[at : at + 1], at + 1
            if operation == b".":
                return at
            if operation in _PLAIN:
                at += _PLAIN[operation]
                stack.append(_Value())
            elif operation in (b"X", b"U", b"\x8a"):
                width = 4 if operation == b"X" else 1
                length = int.from_bytes(data[at : at + width], "little")
                at += width + length
                word = str(data[at - min(length, 40) : at], "utf-8", "replace")
                stack.append(_Value(1 + length // LETTERS, word))
            elif operation == b"c":
                middle = data.find(b"\n", at)
                end = data.find(b"\n", middle + 1)
                if middle < 0 or end < 0:
                    return at
                name = ".".join(str(data[at:end], "utf-8", "replace").split("\n"))
                if name in SWELLING:
                    raise ValueError(f"{name}, which may take any memory")
                stack.append(_Value(word=name))
                at = end + 1
            elif operation == b"(":
                stack.append(_MARK)
            elif operation in _EMPTY:
                stack.append(_Value())
            elif operation == b"t":
                stack.append(_tuple(_popped(stack)))
            elif operation in _TUPLES:
                items = stack[-_TUPLES[operation] :]
                del stack[-_TUPLES[operation] :]
                stack.append(_tuple(items))
            elif operation in (b"q", b"r"):
                width = 1 if operation == b"q" else 4
                memo[int.from_bytes(data[at : at + width], "little")] = stack[-1]
                at += width
            elif operation in (b"h", b"j"):
                width = 1 if operation == b"h" else 4
                stack.append(memo[int.from_bytes(data[at : at + width], "little")])
                at += width
            elif operation in (b"a", b"e", b"s", b"u"):
                count = {b"a": 1, b"s": 2}.get(operation)
                items = _popped(stack) if count is None else [stack.pop() for _ in range(count)][::-1]
                work += sum(item.size for item in (items[::2] if operation in (b"s", b"u") else ()))
                if stack[-1].held and items:
                    raise ValueError("values that grow within others")
                stack[-1].size += sum(item.size for item in items)
                for item in items:
                    item.held = True
            elif operation in (b"R", b"\x81"):
                arguments, function = stack.pop(), stack.pop()
                _check_call(function.word, arguments)
                work += arguments.size
                stack.append(_Value(arguments.size))
            elif operation == b"b":
                work += stack.pop().size
            elif operation == b"Q":
                stack[-1] = _Value()
            elif operation == b"\x80":
                at += 1
            else:
                return at
            if work > MOST_WORK or (stack and stack[-1] is not _MARK and stack[-1].size > MOST_WORK):
                raise ValueError("values within values without end")
    except (IndexError, KeyError, AttributeError):  # no more on the stack, or a mark there
        return at
    raise ValueError(f"more than {MOST_OPERATIONS:,} operations")


def _popped(stack: list[Any]) -> list[Any]:
    """Take all above the last mark, and the mark."""
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _tuple(items: list[Any]) -> _Value:
    value = _Value(1 + sum(item.size for item in items))
    value.words = [item.word for item in items[:9]]
    for item in items:
        item.held = True
    return value


def _check_call(name: str, arguments: Any) -> None:
    first = arguments.words[0] if arguments.words else ""
    if name == ENCODE and arguments.words[1:] != ["latin1"]:  # as bytes are written; others take quadratic time
        raise ValueError(f"{ENCODE} to {arguments.words[1:]!r}")
    if name == FROM_TYPE and not first.startswith(REBUILD):
        raise ValueError(f"{FROM_TYPE} of {first!r}")
    if name.startswith("torch.") and name.endswith(("Tensor", "Storage")):
        raise ValueError(f"{name}, which may take any memory")
