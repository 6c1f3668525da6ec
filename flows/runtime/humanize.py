"""Numbers for people: money, counts, durations."""


def money(cost: float) -> str:
    """Dollars as people say them, `$0.12`; what is less than a cent with more digits."""
    return f"${cost:,.2f}" if cost >= 0.01 else f"${cost:.4f}"


def duration(seconds: float) -> str:
    """Format seconds in the largest unit of which there are two."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{rounded(seconds / size):g} {unit}"
    return f"{rounded(seconds):g} s"


def pluralize(count: int, noun: str) -> str:
    """So many of them: `1 row`, `1,000 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def rounded(number: float) -> float:
    """Two figures of it: more than an estimate knows would be false."""
    return float(f"{number:.2g}")
