"""Command line shared by stores of answers and results: show, prune, clear."""

import argparse
import re
import time
from collections.abc import Iterable, Sequence

UNIT_SECONDS = {"h": 3600, "d": 86400, "w": 604800}


def make_parser(module: str, description: str, things: str, kind: str) -> argparse.ArgumentParser:
    """Return the argument parser of a store.

    Args:
        module: The module that is run with `python -m`.
        description: The sentence at the top of the help.
        things: The plural of what is stored, for the help.
        kind: The name of the option of `prune` that selects a group; its value is in `only`.
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
    """Print rows in aligned columns under a head."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def format_time(seconds: float) -> str:
    """Return a time in seconds since 1970 as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
