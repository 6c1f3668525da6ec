"""JSON of any size as a stream of rows: a list, objects one after the other, or an object around a list."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

from tasks.typing import Row

WINDOW = 1 << 16  # bytes of JSON read at once; a larger value doubles it until it fits
CUT = 16  # characters from the end of the window within which an error may be the cut: `-Infinity` is the longest word
BLANK = re.compile(r"[ \t\n\r]*")


def read_json(stream: IO[bytes], name: str) -> Iterator[Row]:
    """The rows of a JSON text: a list of objects, objects one after the other, or an object around a list.

    Raises:
        ValueError: If it is none of them, naming the line.
    """
    window = _Window(stream, name)
    if window.peek() == "[":
        yield from _items(window)
        return
    if not window.peek():
        return
    line, first = window.line, window.take()
    if not window.peek() and isinstance(first, dict) and (key := _wrapped(first, name)):
        for at, item in enumerate(first[key]):
            yield row_of(item, f"{name}[{at}]")
        return
    yield row_of(first, f"{name}:{line}")
    while window.peek():
        line = window.line
        yield row_of(window.take(), f"{name}:{line}")


def _items(window: "_Window") -> Iterator[Row]:
    window.expect("[")
    at = 0
    while at or window.peek() != "]":
        yield row_of(window.take(), f"{window.name}[{at}]")
        at += 1
        if window.peek() == "]":
            break
        window.expect(",")
    window.expect("]")
    if window.peek():
        raise window.fault("something follows the list", window.at)


def _wrapped(value: dict[str, Any], name: str) -> str | None:
    """The column of a lone object that holds the rows; `None` if the object is a row.

    Raises:
        ValueError: If several may.
    """
    lists = [
        key
        for key, items in value.items()
        # a list of messages is a conversation, and its object a row
        if isinstance(items, list) and items and all(isinstance(item, dict) and "role" not in item for item in items)
    ]
    if len(lists) > 1:
        raise ValueError(
            f"`{name}` has several lists of objects, {ticked(lists)}: keep the one that is meant, "
            "or put `[` and `]` around it all if it is one row."
        )
    return lists[0] if lists else None


class _Window:
    """The part of a JSON text that is in memory, and a place in it.

    Attributes:
        at: The place, in the window.
        line: The line of the file the place is in.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.name, self.at, self.line = name, 0, 1
        self._stream, self._text, self._ended = stream, "", False
        self._column = 0  # of the file, where the window begins
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            if blank := BLANK.match(self._text, self.at):
                self._move(blank.end())
            if self.at < len(self._text) or self._ended:
                return self._text[self.at : self.at + 1]
            self._read()

    def expect(self, character: str) -> None:
        """Pass over a character.

        Raises:
            ValueError: If another stands there.
        """
        if self.peek() != character:
            raise self.fault(f"Expecting '{character}'", self.at)
        self._move(self.at + 1)

    def take(self) -> Any:
        """Pass over a value, and return it.

        Raises:
            ValueError: If there is none.
        """
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._text) - CUT or error.msg.startswith("Unterminated string")
                if self._ended or not cut:
                    raise self.fault(error.msg, error.pos) from error
            except ValueError as error:
                raise self.fault(f"{error}", self.at) from error
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._move(end)
                    return value
            self._read()

    def fault(self, what: str, at: int) -> ValueError:
        """An error about what stands at a place in the window."""
        line = self.line + self._text.count("\n", self.at, at)
        start = self._text.rfind("\n", 0, at)
        column = at - start if start >= 0 else self._column + at + 1
        return ValueError(f"`{self.name}:{line}` is not JSON: {what} at column {column}. Fix the line.")

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self.at, to)
        self.at = to

    def _read(self) -> None:
        start = self._text.rfind("\n", 0, self.at)
        self._column = self.at - start - 1 if start >= 0 else self._column + self.at
        kept = self._text[self.at :]
        data = self._stream.read(max(WINDOW, len(kept)))
        try:
            text = self._decode(data, not data)
        except UnicodeDecodeError as error:
            raise not_utf8(self.name, self.line + kept.count("\n"), error) from error
        self._text, self.at, self._ended = kept + text, 0, not data


def row_of(value: Any, origin: str) -> Row:
    if isinstance(value, dict):
        return Row(value, origin)
    what = {list: "a list", str: "a text", bool: "a truth value", type(None): "`null`"}.get(type(value), "a number")
    hint = ' If the file is one list, say `filetype="json"`.' if isinstance(value, list) else ""
    raise ValueError(f'`{origin}` is {what}, not an object: write `{{"column": value}}`.{hint}')


def not_utf8(name: str, line: int, error: UnicodeDecodeError) -> ValueError:
    line += error.object.count(b"\n", 0, error.start)
    byte = error.object[error.start]
    return ValueError(f"`{name}:{line}` is not UTF-8: it has the byte 0x{byte:02x}. Save the file as UTF-8.")


def ticked(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
