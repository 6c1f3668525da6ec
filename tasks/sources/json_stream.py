"""Streaming parser of JSON rows: a list, concatenated objects, or an object around a list."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

from tasks.typing import Row

READ_BYTES = 1 << 16  # minimum of one read; a value that does not fit doubles it
MAX_TOKEN_CHARS = 16  # an error so close to the end of the buffer may be a cut token: `-Infinity` is the longest
WHITESPACE = re.compile(r"[ \t\n\r]*")


def read_json(stream: IO[bytes], name: str) -> Iterator[Row]:
    """Yield the rows of a JSON text: a list of objects, concatenated objects, or an object around a list.

    Raises:
        ValueError: If it is none of them; it names the line.
    """
    buffer = _Buffer(stream, name)
    if buffer.peek() == "[":
        yield from _items(buffer)
        return
    if not buffer.peek():
        return
    line, first = buffer.line, buffer.take()
    if not buffer.peek() and isinstance(first, dict) and (key := _rows_key(first, name)):
        for index, item in enumerate(first[key]):
            yield row_of(item, f"{name}[{index}]")
        return
    yield row_of(first, f"{name}:{line}")
    while buffer.peek():
        line = buffer.line
        yield row_of(buffer.take(), f"{name}:{line}")


def _items(buffer: "_Buffer") -> Iterator[Row]:
    buffer.expect("[")
    index = 0
    while index or buffer.peek() != "]":
        yield row_of(buffer.take(), f"{buffer.name}[{index}]")
        index += 1
        if buffer.peek() == "]":
            break
        buffer.expect(",")
    buffer.expect("]")
    if buffer.peek():
        raise buffer.error("something follows the list", buffer.position)


def _rows_key(value: dict[str, Any], name: str) -> str | None:
    """Return the key of the rows in a single object; `None` if the object is a row.

    Raises:
        ValueError: If several keys have lists of objects.
    """
    lists = [
        key
        for key, items in value.items()
        # a list of messages is a conversation, and its object a row
        if isinstance(items, list) and items and all(isinstance(item, dict) and "role" not in item for item in items)
    ]
    if len(lists) > 1:
        raise ValueError(
            f"`{name}` has several lists of objects, {quote_names(lists)}: keep the one that is meant, "
            "or put `[` and `]` around it all if it is one row."
        )
    return lists[0] if lists else None


class _Buffer:
    """A buffer over a part of a JSON text, with a read position.

    Attributes:
        position: Read position in the buffer, in characters.
        line: Line of the file at the read position.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.name, self.position, self.line = name, 0, 1
        self._stream, self._text, self._ended = stream, "", False
        self._column = 0  # of the file, at the beginning of the buffer
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """Skip whitespace and return the next character; empty at the end."""
        while True:
            if space := WHITESPACE.match(self._text, self.position):
                self._advance(space.end())
            if self.position < len(self._text) or self._ended:
                return self._text[self.position : self.position + 1]
            self._read()

    def expect(self, character: str) -> None:
        """Consume a character.

        Raises:
            ValueError: If the next character is another.
        """
        if self.peek() != character:
            raise self.error(f"Expecting '{character}'", self.position)
        self._advance(self.position + 1)

    def take(self) -> Any:
        """Consume and return a value.

        Raises:
            ValueError: If it is malformed.
        """
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self.position)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._text) - MAX_TOKEN_CHARS or error.msg.startswith("Unterminated string")
                if self._ended or not cut:
                    raise self.error(error.msg, error.pos) from error
            except ValueError as error:
                raise self.error(f"{error}", self.position) from error
            else:
                if end < len(self._text) or self._ended:  # else a number may be cut
                    self._advance(end)
                    return value
            self._read()

    def error(self, reason: str, position: int) -> ValueError:
        """Return an error with the line and column of a position in the buffer."""
        line = self.line + self._text.count("\n", self.position, position)
        start = self._text.rfind("\n", 0, position)
        column = position - start if start >= 0 else self._column + position + 1
        return ValueError(f"`{self.name}:{line}` is not JSON: {reason} at column {column}. Fix the line.")

    def _advance(self, to: int) -> None:
        self.line += self._text.count("\n", self.position, to)
        self.position = to

    def _read(self) -> None:
        start = self._text.rfind("\n", 0, self.position)
        self._column = self.position - start - 1 if start >= 0 else self._column + self.position
        kept = self._text[self.position :]
        data = self._stream.read(max(READ_BYTES, len(kept)))
        try:
            text = self._decode(data, not data)
        except UnicodeDecodeError as error:
            raise utf8_error(self.name, self.line + kept.count("\n"), error) from error
        self._text, self.position, self._ended = kept + text, 0, not data


def row_of(value: Any, origin: str) -> Row:
    """Return a JSON object as a row.

    Raises:
        ValueError: If the value is no object.
    """
    if isinstance(value, dict):
        return Row(value, origin)
    kind = {list: "a list", str: "a text", bool: "a truth value", type(None): "`null`"}.get(type(value), "a number")
    hint = ' If the file is one list, say `filetype="json"`.' if isinstance(value, list) else ""
    raise ValueError(f'`{origin}` is {kind}, not an object: write `{{"column": value}}`.{hint}')


def utf8_error(name: str, line: int, error: UnicodeDecodeError) -> ValueError:
    """Return an error with the line of a byte that is not UTF-8, in a text that begins at `line`."""
    line += error.object.count(b"\n", 0, error.start)
    byte = error.object[error.start]
    return ValueError(f"`{name}:{line}` is not UTF-8: it has the byte 0x{byte:02x}. Save the file as UTF-8.")


def quote_names(names: Sequence[str]) -> str:
    """Return names in backticks, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)
