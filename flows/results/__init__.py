"""What a step made of a batch, kept as JSON among Prefect's results, under a key of all it was made of.

`python -m flows.results` shows what is kept, and deletes.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import orjson
from prefect.serializers import Serializer
from pydantic import Field

from flows.results.fingerprint import NotHashable, fingerprint
from tasks import Step
from tasks.dag import Route
from tasks.typing import BatchResult, ModelUsage, Row, RowLineage

KEY_PREFIX = "distilflow"
"""How every key begins: what tells them from other results in the same storage."""

REVISION = 1
"""Part of every key: raise it when the framework makes something else of the same rows."""


def step_identity(step: Step, before: Iterable[str], routes: Iterable[Route]) -> str | None:
    """A hash of what decides what a step makes of rows; `None` if that cannot be told.

    Args:
        step: The step, with its fields, its model and its code.
        before: The names of the steps its rows come from.
        routes: The routes they take.
    """
    try:
        what = fingerprint(step, [list(before), list(routes)])
    except NotHashable:
        return None
    return _hash(repr([REVISION, version("distilflow"), what]).encode())


def result_key(step: Step, identity: str, batches: Iterable[BatchResult]) -> str | None:
    """Where the result of a step for these batches is kept, in Prefect's storage.

    `None` if it cannot be: the content of a batch is not known.
    """
    digests = [batch.digest for batch in batches]
    return None if None in digests else f"{KEY_PREFIX}/{step.name}/{_hash(repr([identity, digests]).encode())}"


def digest_rows(rows: list[Row]) -> str | None:
    """A hash of rows and of which rows they are; `None` if JSON would not bring them back as they are."""
    digest = blake2b(digest_size=16)
    try:
        for plain in _encode_rows(rows):  # one by one: all at once would be in memory three times
            if orjson.loads(text := orjson.dumps(plain)) != plain:
                return None
            digest.update(text + b"\n")
    except TypeError:
        return None
    return digest.hexdigest()


def combine_digests(one: str | None, other: str | None) -> str | None:
    """The digest of the rows of two batches."""
    return None if one is None or other is None else _hash(f"{one} {other}".encode())


class BatchResultSerializer(Serializer):
    """An `BatchResult` without failures as JSON. It comes back as one for which no model was asked anything."""

    type: str = Field(default="distilflow", frozen=True)

    def dumps(self, obj: BatchResult) -> bytes:
        """The rows, which they are and where they come from, and how many answers are in them."""
        answers = {model: spent.requests + spent.cached for model, spent in obj.model_usage.items()}
        kept = {"rows_in": obj.rows_in, "digest": obj.digest, "answers": answers, "rows": list(_encode_rows(obj.rows))}
        return orjson.dumps(kept)

    def loads(self, blob: bytes) -> BatchResult:
        """The same."""
        kept = orjson.loads(blob)
        return BatchResult(
            rows=[Row(row, _decode_lineage(place, id)) for place, id, row in kept["rows"]],
            model_usage={model: ModelUsage(cached=answers) for model, answers in kept["answers"].items()},
            rows_in=kept["rows_in"],
            digest=kept["digest"],
        )


def _encode_rows(rows: Iterable[Row]) -> Iterator[list[Any]]:
    return ([row.origin, None if row.id is None else list(row.id), row] for row in rows)


def _decode_lineage(place: str | None, id: list[int] | None) -> str | None:
    return place if place is None or id is None else RowLineage(place, tuple(id))


def _hash(text: bytes) -> str:
    return blake2b(text, digest_size=16).hexdigest()
