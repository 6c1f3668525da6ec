"""A resource of a Prefect server: desired state, actual state, and the drift between them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Resource:
    """A block type, pool, queue, limit, automation or deployment.

    Args:
        kind: Kind of resource, in Prefect's terms.
        name: Name of the resource.
        desired: Fields in the file; fields that are not in it stay as set in the UI.
        actual: Fields on the server; `None` if the resource does not exist.
        save: Reconciles the server.
        note: Remark for the user.
    """

    kind: str
    name: str
    desired: dict[str, Any]
    actual: dict[str, Any] | None
    save: Callable[[], object]
    note: str = ""

    @property
    def differences(self) -> list[str]:
        """The drift: a line for each field that differs."""
        actual = self.actual or {}
        return [line for key, value in self.desired.items() for line in _diff(key, value, actual.get(key))]

    @property
    def state(self) -> str:
        """The action that reconciles it, as a participle."""
        return "created" if self.actual is None else "updated" if self.differences else "unchanged"


def _diff(path: str, desired: Any, actual: Any) -> Iterator[str]:
    if desired == actual:
        return
    if isinstance(desired, dict) and isinstance(actual, dict):
        for key in [*desired, *(key for key in actual if key not in desired)]:
            yield from _diff(f"{path}.{key}", desired.get(key), actual.get(key))
    else:
        yield f"{path}: {_shorten(actual)} → {_shorten(desired)}"


def _shorten(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"
