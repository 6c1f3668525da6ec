"""Files that a test changes."""

from pathlib import Path


def replace_in_file(path: Path, old: str, new: str, times: int = -1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, times))
