"""Text for people: money, durations, counts, long texts."""


def money(dollars: float, decimals: int | None = None, approximate: bool = False) -> str:
    """Format dollars: `$0.12`, with four decimals below a cent, or with `decimals`; `approximate` to two digits."""
    if approximate:
        return f"${round_significant(dollars):,.10g}"
    return f"${dollars:,.{decimals or (2 if dollars >= 0.01 else 4)}f}"


def duration(seconds: float, approximate: bool = False) -> str:
    """Format seconds as `7 s`, `3 min 5 s` or `2 h 4 min`; `approximate` to two digits of one unit, as `2.1 h`."""
    if approximate:
        for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
            if seconds >= 2 * size:
                return f"{round_significant(seconds / size):g} {unit}"
        return f"{round_significant(seconds):g} s"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def compact(number: float) -> str:
    """Format a number in at most six characters: `9,999`, `12.3k`, `4.5M`."""
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1e3:,.1f}k" if number < 1e6 else f"{number / 1e6:,.1f}M"


def pluralize(count: int, noun: str) -> str:
    """Format a count with its noun: `1 row`, `1,000 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def truncate(text: str, max_chars: int) -> str:
    """Cut a text after `max_chars` characters, and mark the cut with `…`."""
    return text if len(text) <= max_chars else f"{text[:max_chars]}…"


def round_significant(number: float) -> float:
    """Round to two significant digits: an estimate knows no more."""
    return float(f"{number:.2g}")
