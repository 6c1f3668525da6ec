"""Cache of step results: batches as JSON in Prefect's result storage, under a hash of everything they depend on.

`python -m flows.results` lists and deletes them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import orjson
from prefect.serializers import Serializer
from pydantic import Field, TypeAdapter

from flows.results.fingerprint import NotHashable, fingerprint
from tasks import Step
from tasks.dag import Route
from tasks.typing import BatchResult, ModelUsage, Row, RowLineage

KEY_PREFIX = "distilflow"
"""Prefix of every key, which separates them from other results in the same storage."""

REVISION = 2
"""Part of every key: raise it when the framework computes something else from the same rows, or writes it otherwise."""


def step_identity(step: Step, upstream: Iterable[str], routes: Iterable[Route]) -> str | None:
    """Hash everything but the rows that determines a step's result; `None` if it cannot be hashed.

    Args:
        step: The step, with its fields, its model and its code.
        upstream: Names of the steps its rows come from.
        routes: Routes they take.
    """
    try:
        description = fingerprint(step, [list(upstream), list(routes)])
    except NotHashable:
        return None
    return _hash(repr([REVISION, version("distilflow"), description]).encode())


def result_key(step: Step, identity: str, batches: Iterable[BatchResult]) -> str | None:
    """Return the storage key of a step's result for these batches; `None` if a batch has no digest."""
    digests = [batch.digest for batch in batches]
    return None if None in digests else f"{KEY_PREFIX}/{step.name}/{_hash(repr([identity, digests]).encode())}"


def digest_rows(rows: list[Row]) -> str | None:
    """Hash rows with their lineage; `None` if they do not survive a round trip through JSON."""
    digest = blake2b(digest_size=16)
    try:
        for encoded in _encode_rows(rows):  # one by one: all at once would be in memory three times
            if orjson.loads(text := orjson.dumps(encoded)) != encoded:
                return None
            digest.update(text + b"\n")
    except TypeError:
        return None
    return digest.hexdigest()


def combine_digests(one: str | None, other: str | None) -> str | None:
    """Combine the digests of two batches."""
    return None if one is None or other is None else _hash(f"{one} {other}".encode())


@dataclass
class ResultContent:
    """A result as it is written."""

    rows_in: int
    digest: str
    answers: dict[str, int]
    rows: list[tuple[str | None, list[int] | None, dict[str, Any]]]


_RESULT_CONTENT = TypeAdapter(ResultContent)


class BatchResultSerializer(Serializer):
    """Serializes a `BatchResult` without failures as JSON; one that is loaded counts all its answers as cached."""

    type: str = Field(default="distilflow", frozen=True)

    def dumps(self, obj: BatchResult) -> bytes:
        """Serialize the rows with their lineage and the number of answers in them, with a checksum of it all."""
        answers = {model: used.requests + used.cached for model, used in obj.model_usage.items()}
        rows = list(_encode_rows(obj.rows))
        content = orjson.dumps({"rows_in": obj.rows_in, "digest": obj.digest, "answers": answers, "rows": rows})
        return _with_checksum(content)

    def loads(self, blob: bytes) -> BatchResult:
        """Deserialize a result.

        Raises:
            ValueError: If it is not as `dumps` wrote it.
        """
        stored = self.validate_content(blob)
        return BatchResult(
            rows=[Row(row, _decode_lineage(origin, id)) for origin, id, row in stored.rows],
            model_usage={model: ModelUsage(cached=answers) for model, answers in stored.answers.items()},
            rows_in=stored.rows_in,
            digest=stored.digest,
        )

    def validate_content(self, blob: bytes) -> ResultContent:
        """Return a serialized result's content.

        Raises:
            ValueError: If it is not as `dumps` wrote it; the message says why, without its content.
        """
        if blob != _with_checksum(content := b"{" + blob[_CHECKSUM_BYTES:]):
            raise ValueError("its checksum is not that of its content")
        try:
            return _RESULT_CONTENT.validate_python(orjson.loads(content))
        except ValueError:
            raise ValueError("it has another shape than a result") from None


def _with_checksum(content: bytes) -> bytes:
    """Return an object in JSON with its checksum as its first member."""
    return b'{"checksum":"%b",%b' % (_hash(content).encode(), content[1:])


def _encode_rows(rows: Iterable[Row]) -> Iterator[list[Any]]:
    return ([row.origin, None if row.id is None else list(row.id), row] for row in rows)


def _decode_lineage(origin: str | None, id: list[int] | None) -> str | None:
    return origin if origin is None or id is None else RowLineage(origin, tuple(id))


def _hash(text: bytes) -> str:
    return blake2b(text, digest_size=16).hexdigest()


_CHECKSUM_BYTES = len(_with_checksum(b"{"))
