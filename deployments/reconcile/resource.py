"""Anything there is in Prefect: what the files say of it, what Prefect has, and what to do about the difference."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Resource:
    """A block type, pool, queue, limit, automation or deployment.

    Args:
        kind: What it is, in Prefect's words.
        name: Which one.
        desired: What the file says, field by field; what it does not say is left as people set it in the UI.
        actual: What Prefect has; nothing, if there is no such thing yet.
        save: Makes it so.
        note: What a person should know about it.
    """

    kind: str
    name: str
    desired: dict[str, Any]
    actual: dict[str, Any] | None
    save: Callable[[], object]
    note: str = ""

    @property
    def differences(self) -> list[str]:
        """Where Prefect has something else than the file says."""
        found = self.actual or {}
        return [line for key, value in self.desired.items() for line in _between(key, value, found.get(key))]

    @property
    def state(self) -> str:
        """What would have to happen to it."""
        return "created" if self.actual is None else "updated" if self.differences else "unchanged"


def _between(path: str, wanted: Any, found: Any) -> Iterator[str]:
    if wanted == found:
        return
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            yield from _between(f"{path}.{key}", wanted.get(key), found.get(key))
    else:
        yield f"{path}: {_short(found)} → {_short(wanted)}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"
