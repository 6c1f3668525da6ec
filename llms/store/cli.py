"""The command line of a place where things are kept: what it holds, and ways to make it smaller."""

import argparse
import re
import time
from collections.abc import Iterable, Sequence

UNIT_SECONDS = {"h": 3600, "d": 86400, "w": 604800}


def make_parser(module: str, description: str, things: str, kind: str) -> argparse.ArgumentParser:
    """The command line of a place where things are kept: it shows them, and prunes or clears on request.

    Args:
        module: What is run, after `python -m`.
        description: What the things are.
        things: What they are called.
        kind: What groups them, an option of `prune`; given as `only`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    commands = parser.add_subparsers(dest="command", metavar="prune | clear")
    prune = commands.add_parser("prune", help=f"delete old {things}")
    prune.add_argument(
        "--older-than", type=_parse_age, required=True, metavar="30d", help="hours, days or weeks: 12h, 30d, 4w"
    )
    prune.add_argument(f"--{kind}", dest="only", metavar="NAME", help=f"of this {kind} only")
    clear = commands.add_parser("clear", help=f"delete all {things}")
    clear.add_argument("--yes", action="store_true", help="do so")
    return parser


def _parse_age(text: str) -> int:
    if not (match := re.fullmatch(r"(\d+)([hdw])", text)):
        raise argparse.ArgumentTypeError(f"`{text}` is no age: write hours, days or weeks, like 12h, 30d or 4w")
    return int(match[1]) * UNIT_SECONDS[match[2]]


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns, under what these are called."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def format_time(seconds: float) -> str:
    """A time in seconds since 1970 for people, in their own time zone."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
