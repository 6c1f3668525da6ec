"""Expressions as grammars of llama.cpp's server, in its dialect of Backus-Naur form (GBNF)."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from llms.structured.grammar import (
    CharSet,
    Concat,
    Expr,
    Repeat,
    Union,
    bounded,
    length_bounds,
    literal,
    quantifier,
    shortest_text,
)
from llms.structured.json_schema import parse_structure
from llms.typing import StructuredOutputType

MAX_COUNTED_REPETITIONS = 1000
"""The server's limit of a repetition's count; a higher one is left out of the grammar."""

BIAS_PER_BYTE = 100.0
"""Logit bias, per byte, of tokens to be taken wherever they are allowed, the longest first."""


class TokenPath(NamedTuple):
    """The tokens by which a model writes a certain text.

    Attributes:
        num_tokens: Length of the path.
        token_lengths: Bytes of each token on it; where several fit, the longest is taken.
    """

    num_tokens: int
    token_lengths: dict[int, int]


@dataclass(frozen=True)
class Grammar:
    """A grammar; `str` of it is in GBNF.

    Attributes:
        title: Its source, for readers of the server's log.
        expr: The texts that it allows.
    """

    title: str
    expr: Expr

    def __str__(self) -> str:
        return f"# {' '.join(self.title.split())}\nroot ::= {_to_gbnf(self.expr)}\n"

    @property
    def shortest_text(self) -> str:
        """The shortest text."""
        return shortest_text(self.expr)

    def closing_request(self, max_tokens: int, path: TokenPath) -> dict[str, Any]:
        """Return members of a request whose text is certain to end within `max_tokens`.

        A token has a byte at least, so texts of as many bytes as there may be tokens are allowed. Where even the
        shortest text is longer, it is the only one, and its own tokens are preferred.

        Args:
            max_tokens: At least those of the path.
            path: Of the shortest text.
        """
        if max_tokens > length_bounds(self.expr)[0]:  # one is left for the end
            return {"grammar": str(Grammar(self.title, bounded(self.expr, max_tokens - 1)))}
        only = Grammar(self.title, literal(self.shortest_text))
        bias = [[token, BIAS_PER_BYTE * length] for token, length in path.token_lengths.items()]
        return {"grammar": str(only), "logit_bias": bias}


def compile_grammar(structure: StructuredOutputType) -> Grammar:
    """Compile a structure.

    Raises:
        Fatal: If it has something that no grammar can say.
    """
    return _compile(json.dumps(structure["schema"], ensure_ascii=False))


@lru_cache(maxsize=100)
def _compile(schema: str) -> Grammar:
    parsed = json.loads(schema)
    title = parsed if isinstance(parsed, str) else schema
    return Grammar(title, parse_structure({"format": "regex" if isinstance(parsed, str) else "json", "schema": parsed}))


def _to_gbnf(expr: Expr) -> str:
    match expr:
        case CharSet(ranges):
            return f"[{''.join(_escape(a) + (f'-{_escape(b)}' if b > a else '') for a, b in ranges)}]"
        case Concat(parts):
            return _concat(parts)
        case Union(options):
            return f"({' | '.join(map(_to_gbnf, options))})"
        case Repeat(part, min_count, max_count):
            min_count = min(min_count, MAX_COUNTED_REPETITIONS)
            max_count = max_count if max_count is not None and max_count <= MAX_COUNTED_REPETITIONS else None
            times = f"{{{min_count}}}" if min_count == max_count else quantifier(min_count, max_count)
            inner = _to_gbnf(part)
            return (inner if isinstance(part, CharSet | Union) else f"({inner})") + times


def _concat(parts: tuple[Expr, ...]) -> str:
    """Write consecutive parts; single characters are joined to one string."""
    written: list[str] = []
    text = ""
    for part in parts:
        if isinstance(part, CharSet) and len(part) == 1:
            text += _escape(part.ranges[0][0])
            continue
        if text:
            written.append(f'"{text}"')
            text = ""
        written.append(_to_gbnf(part))
    return " ".join([*written, f'"{text}"'] if text or not written else written)


def _escape(code_point: int) -> str:
    char = chr(code_point)
    if char.isascii() and (char.isalnum() or char == " "):
        return char
    if code_point < 0x100:
        return f"\\x{code_point:02X}"
    return f"\\u{code_point:04X}" if code_point < 0x10000 else f"\\U{code_point:08X}"
