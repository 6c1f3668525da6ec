"""Shapes in the words of llama.cpp's server: grammars in its dialect of Backus and Naur's form."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from llms.structured.grammar import CharSet, Concat, Expr, Repeat, Union, bounded, length_bounds, literal, shortest_text
from llms.structured.validation import parse_structure
from llms.typing import StructuredOutputType

MAX_COUNTED_REPETITIONS = 1000
"""How often something may be repeated by number, as far as the server goes; beyond that it is not counted."""


BIAS_PER_BYTE = 100.0
"""The bias, per byte, of tokens that are to be taken wherever they are allowed, the longest first."""


class TokenPath(NamedTuple):
    """How a certain text is written.

    Attributes:
        steps: How many tokens it takes.
        tokens: Those to be taken, each with its number of bytes: where several fit, the longest.
    """

    num_tokens: int
    token_lengths: dict[int, int]


@dataclass(frozen=True)
class Grammar:
    """A grammar; `str` of it is what the server reads.

    Attributes:
        title: What it is of, for whoever reads it in the server's log.
        shape: The texts that it allows.
    """

    title: str
    expr: Expr

    def __str__(self) -> str:
        return f"# {' '.join(self.title.split())}\nroot ::= {_written(self.expr)}\n"

    @property
    def shortest_text(self) -> str:
        """The shortest text."""
        return shortest_text(self.expr)

    def closing_request(self, limit: int, way: TokenPath) -> dict[str, Any]:
        """The members of a request whose text surely ends within so many tokens.

        A token has a byte at least, so that texts of as many bytes as there may be tokens will do. Where not even the
        shortest is among those, it is the only one, and its own tokens are preferred.

        Args:
            limit: Not below the steps of the `way`.
            way: To the shortest text.
        """
        if limit > length_bounds(self.expr)[0]:  # one is left for the end
            return {"grammar": str(Grammar(self.title, bounded(self.expr, limit - 1)))}
        only = Grammar(self.title, literal(self.shortest_text))
        return {
            "grammar": str(only),
            "logit_bias": [[token, BIAS_PER_BYTE * size] for token, size in way.token_lengths.items()],
        }


def compile_grammar(structure: StructuredOutputType) -> Grammar:
    """The grammar of a structure.

    Raises:
        Fatal: If it has something that no grammar can say.
    """
    return _grammar_of(json.dumps(structure["schema"], ensure_ascii=False))


@lru_cache(maxsize=100)
def _grammar_of(schema: str) -> Grammar:
    parsed = json.loads(schema)
    title = parsed if isinstance(parsed, str) else schema
    return Grammar(title, parse_structure({"format": "regex" if isinstance(parsed, str) else "json", "schema": parsed}))


def _written(shape: Expr) -> str:
    match shape:
        case CharSet(ranges):
            return f"[{''.join(_escaped(a) + (f'-{_escaped(b)}' if b > a else '') for a, b in ranges)}]"
        case Concat(parts):
            return _sequence(parts)
        case Union(options):
            return f"({' | '.join(map(_written, options))})"
        case Repeat(part, least, most):
            least = min(least, MAX_COUNTED_REPETITIONS)
            most = most if most is not None and most <= MAX_COUNTED_REPETITIONS else None
            times = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
            counted = f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"
            inner = _written(part)
            return (inner if isinstance(part, CharSet | Union) else f"({inner})") + (times or counted)


def _sequence(parts: tuple[Expr, ...]) -> str:
    """Parts side by side; characters that are certain stand together as one text."""
    found: list[str] = []
    certain = ""
    for part in parts:
        if isinstance(part, CharSet) and len(part) == 1:
            certain += _escaped(part.ranges[0][0])
            continue
        if certain:
            found.append(f'"{certain}"')
            certain = ""
        found.append(_written(part))
    return " ".join([*found, f'"{certain}"'] if certain or not found else found)


def _escaped(point: int) -> str:
    character = chr(point)
    if character.isascii() and (character.isalnum() or character == " "):
        return character
    return f"\\x{point:02X}" if point < 0x100 else f"\\u{point:04X}" if point < 0x10000 else f"\\U{point:08X}"
