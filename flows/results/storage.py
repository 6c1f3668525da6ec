"""Reading and writing the records of results: only what our serializer wrote is read, and only its user may read it."""

import logging
from abc import ABC
from pathlib import PurePath
from typing import Any

import orjson
from prefect.filesystems import LocalFileSystem, WritableFileSystem
from prefect.results import ResultStore
from pydantic import SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from flows.results import KEY_PREFIX, BatchResultSerializer
from llms.store.private_files import make_private_file, make_private_folder

logger = logging.getLogger(__name__)


class CheckedStorage(WritableFileSystem, ABC):  # `ABC`, so that Prefect does not list it among its blocks
    """A result storage that returns a record only if `BatchResultSerializer` wrote it and nothing has changed it since.

    Prefect deserializes a record with whatever serializer the record itself names, and `pickle` runs code: whoever may
    write to a shared bucket or volume could run code on every worker. A record that is refused counts as missing.
    """

    _block_type_name = "Checked Storage"

    storage: WritableFileSystem
    """Where the records are."""

    def read_path(self, path: str, **options: Any) -> Any:
        """Return the content of a record.

        Raises:
            ValueError: If it is not ours, or damaged.
        """
        content: Any = self.storage.read_path(path, **options)
        if not _is_ours(path):
            return content
        place = f"{self._resolve_path(path) or path}"
        try:
            result = _result_in(content)
        except ValueError as error:
            logger.warning("The stored result `%s` is made again: it cannot be trusted, because %s.", place, error)
            raise
        # Of what the record says about itself nothing is passed on, so that no second parser can read something else.
        metadata = {"serializer": BatchResultSerializer(), "storage_key": place}
        if self._block_document_id:
            metadata |= {"storage_key": path, "storage_block_id": self._block_document_id}
        return orjson.dumps({"metadata": metadata, "result": result}, default=BatchResultSerializer.model_dump)

    def write_path(self, path: str, content: bytes, **options: Any) -> Any:
        """Write a record, in a local folder for its user alone unless it is a saved block, which several may share."""
        if _is_ours(path) and isinstance(self.storage, LocalFileSystem) and self._block_document_id is None:
            make_private_folder((file := self.storage._resolve_path(path)).parent)
            make_private_file(file)
        return self.storage.write_path(path, content, **options)

    @model_serializer(mode="wrap")
    def ser_model(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        """Return the storage inside: tasks that a step starts elsewhere are not ours to check."""
        return self.storage.model_dump(mode=info.mode, context=info.context, serialize_as_any=True)

    def _resolve_path(self, path: str) -> Any:
        resolve = getattr(self.storage, "_resolve_path", None)
        return resolve and resolve(path)


def check_records(store: ResultStore) -> None:
    """Have a task's result store read and write our records through a `CheckedStorage`; others are as ever."""
    inner = store.result_storage
    if inner is not None and not isinstance(inner, CheckedStorage):
        store.result_storage = CheckedStorage(storage=inner)
        store.result_storage._block_document_id = inner._block_document_id  # records name the block they are in


def _is_ours(path: str) -> bool:
    return KEY_PREFIX in PurePath(path).parts  # keys are read as they are, and written as absolute paths


def _result_in(content: bytes) -> str:
    """Return the result in a record.

    Raises:
        ValueError: If it is not as our serializer wrote it; the message says why, without its content.
    """
    serializer = BatchResultSerializer()
    try:
        record = orjson.loads(content)
    except ValueError:
        raise ValueError("it is not JSON") from None
    match record:
        case {"metadata": {"serializer": {"type": serializer.type, **options}}, "result": str(result), **more} if not (
            options or more
        ):
            serializer.validate_content(result.encode())
            return result
        case {"metadata": {"serializer": {"type": str(other)}}} if other != serializer.type:
            raise ValueError(f"its serializer is `{other}` instead of `{serializer.type}`")
        case _:
            raise ValueError("it is not a record of ours")
