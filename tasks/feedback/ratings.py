"""Parser of ratings in free text."""

import re
from collections.abc import Iterator
from typing import Any

_ITEM = r"^[\W_]*(?:\d+[.)][\W_]*)?"  # Markdown before a word: bullets, numbers, #, **
_LABEL = r"(type|rating|score|rationale|reason(?:ing)?|justification|explanation)"
_HEADER = re.compile(
    rf"{_ITEM}(?:\w+ (?:for|of|on) )?(?:text|output|response)[\s_#*]*(\d+)[\W_]*(?=$|{_LABEL}\b)", re.IGNORECASE
)
_LABELLED = re.compile(
    rf"{_ITEM}{_LABEL}s?(?: (?:for|of) (?:the )?(?:rating|text))?(?:\s*\d+)?(?:\s*[(\[][^)\]]*[)\]])?"
    r"(?:[\s*_]*[:：=][\s*_]*|\s[-–]\s|[\W_]*$)",
    re.IGNORECASE,
)
_NUMBERED = {"type": "type", "rating": "rating", "score": "rating"}  # other labels are rationales
_SAME_LINE = re.compile(r"(?<=\S)[\s*_.,;|-]+(?=\**(?:Rationale|Reasoning|Justification|Explanation)\**:)")
_RULE = re.compile(r"\s*(?:`{3}\w*|-{3,}|\*{3,}|_{3,}|={3,}|</?\w+>)\s*")
_VALUE = re.compile(
    r"(?:[^\w-]|-\s|_)*(?:(?P<none>n\s*/?\s*a\b|none\b|null\b|not applicable)"
    r"|(?P<number>\d+(?:\.\d+)?)(?!\s*(?:-|–|to)\s*\d)(?:[\s*_]*(?:/|out of)\s*(?P<of>\d+))?)",
    re.IGNORECASE,
)


def parse_ratings(text: str, typed: bool = False) -> list[dict[str, Any]]:
    """Parse each rating in a text into a dictionary, in order of appearance.

    It holds `rating`, and `rationale` and `number`, that of the heading above, where they exist. Text without a
    rating, such as a preamble or a model's reasoning, is skipped.

    Args:
        text: Output of the judge.
        typed: Whether each rating comes after a type, and both have a rationale: then there is `type`, and the
            rationale after the rating is `rationale_of_rating`.

    Raises:
        ValueError: If a rating is not 1, 2, 3, 4 or 5.
    """
    records: list[dict[str, Any]] = []
    record: dict[str, Any] = {}
    for kind, value in _segments(text.rpartition("</think>")[2]):
        part = "rationale_of_rating" if typed and kind == "rationale" and "rating" in record else kind
        if kind == "number" or part in record or (kind == "type" and "rating" in record):  # of the next record
            records.append(record)
            record, part = {}, kind
        record[part] = value if kind == "rationale" else _parse_number(kind, value)
    return [each for each in [*records, record] if "rating" in each]


def sort_by_number(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort ratings by the numbers of their headings, if each has one.

    Raises:
        ValueError: If two have one number.
    """
    numbers = [each.get("number") for each in records]
    if None in numbers:
        return records
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"the ratings are of text {', '.join(map(str, numbers))}: one of each is due.")
    return sorted(records, key=lambda each: each["number"])


def _segments(text: str) -> Iterator[tuple[str, str]]:
    """Yield the labels in a text, each with the text up to the next label."""
    kind, value = "", ""
    for name, piece in _pieces(text):
        prose = name in ("", "rationale") and kind == "rationale"
        if prose or name == "" or (name in _NUMBERED and not _VALUE.match(piece) and piece.strip()):
            value += f"\n{piece}"
            continue
        if kind:
            yield kind, value.strip()
        kind, value = name, piece
    if kind:
        yield kind, value.strip()


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a text, each with the label at its beginning, if any."""
    for line in text.splitlines():
        if _RULE.fullmatch(line):
            continue
        if header := _HEADER.match(line):
            yield "number", header[1]
            line = line[header.end() :]
        label = _LABELLED.match(line)
        for piece in _SAME_LINE.split(line) if label and label[1].lower() in _NUMBERED else [line]:
            if label := _LABELLED.match(piece):
                yield _NUMBERED.get(label[1].lower(), "rationale"), piece[label.end() :]
            else:
                yield "", piece


def _parse_number(kind: str, value: str) -> int | None:
    """Parse the number after a label; `None` for N/A.

    Raises:
        ValueError: If it is a rating that is not 1 to 5.
    """
    match = _VALUE.match(value)
    if match is None or match["none"]:
        return None
    number = float(match["number"])
    if kind == "rating" and (number not in (1, 2, 3, 4, 5) or match["of"] not in (None, "5")):
        raise ValueError(f"a rating is 1, 2, 3, 4 or 5; `{match[0].strip()}` came.")
    return int(number)
