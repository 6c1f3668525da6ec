"""The parameter type of a flow's data, and the source it selects."""

import re
from glob import has_magic
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from tasks.base import GeneratorStep
from tasks.sources.files import file_type_of
from tasks.sources.json_stream import quote_names, read_json
from tasks.sources.load_data_from_dicts import LoadDataFromDicts
from tasks.sources.load_data_from_files import LoadDataFromFiles
from tasks.sources.load_data_from_hub import LoadDataFromHub, is_saved

HUB_SCHEME = "hf://"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
FILE_ENDING = re.compile(r"\.[a-z]{2,7}(\.gz)?$", re.IGNORECASE)  # `.txt`, but not the end of `meta/llama-3.1`


def _to_rows(data: Any) -> Any:
    """Convert rows in JSON, and tables in memory, to lists of rows; return all else unchanged.

    A table is a `Dataset` of `datasets`, a `DataFrame` of pandas or polars, or a `Table` of pyarrow.
    """
    if isinstance(data, str) and data.lstrip().startswith(("[", "{")):
        return [dict(row) for row in read_json(BytesIO(data.encode()), "data")]
    table: Any = data
    match f"{type(data).__module__.partition('.')[0]}.{type(data).__name__}":
        case "datasets.DatasetDict":
            raise ValueError(
                f'`data` has the splits {quote_names(list(data))}: give one, `data["{next(iter(data))}"]`.'
            )
        case "datasets.Dataset":
            return table.to_list()
        case "polars.DataFrame":
            return table.to_dicts()
        case "pyarrow.Table":
            return table.to_pylist()
        case "pandas.DataFrame":
            import pyarrow as pa

            return pa.Table.from_pandas(data, preserve_index=False).to_pylist()  # for `None` in place of NaN
        case _:
            return data


Source = Annotated[
    str | Path | list[dict[str, Any]],
    BeforeValidator(_to_rows),
    WithJsonSchema(
        {
            "title": "Data",
            "description": (
                "Where the rows come from: a file, a folder or a glob (JSONL, JSON, CSV, TSV, Parquet), a dataset of "
                "the Hub (`hf://org/name`), or the rows themselves."
            ),
            "anyOf": [
                {"type": "string", "title": "File, folder, glob or Hub dataset"},
                {"type": "array", "title": "Rows", "items": {"type": "object", "additionalProperties": True}},
            ],
        }
    ),
]


def load_data(data: Source, **fields: Any) -> GeneratorStep:
    """Return the source that loads `data`.

    A text is a file, a folder or a glob if it exists or looks like one, so that a misspelt path is never looked up on
    the Hub. `hf://org/name`, and `org/name` otherwise, is a dataset of the Hub.

    Args:
        data: A path, a glob, rows, rows as JSON, a dataset of the Hub, or a `Dataset` or `DataFrame` in memory.
        **fields: Further fields of the source, such as `num_examples` or `batch_size`.

    Raises:
        ValueError: If the text is no source, or malformed JSON.
    """
    data = _to_rows(data)
    if isinstance(data, list):
        return LoadDataFromDicts(data=data[: fields.pop("num_examples", None)], **fields)
    text = f"{data}".strip()
    if not text:
        raise ValueError("`data` is empty: give a file, a folder, a glob, `hf://org/name`, or rows.")
    if "\n" in text or any(len(part) > 255 for part in Path(text).parts):  # the limit of file systems
        raise ValueError('`data` is a text, but no path: write rows as JSON, `[{"column": "value"}]`.')
    if isinstance(data, str) and (repo_id := _hub_id(text)):
        return LoadDataFromHub(repo_id=repo_id, **fields)
    return LoadDataFromFiles(data_files=text, **fields)


def _hub_id(text: str) -> str | None:
    """Return the id of a dataset of the Hub, or a folder that `save_to_disk` wrote; `None` for other files.

    Raises:
        ValueError: If a text with `hf://` has no valid id.
    """
    if text.startswith(HUB_SCHEME):
        name = text.removeprefix(HUB_SCHEME).removeprefix("datasets/").rstrip("/")
        if not HUB_ID.fullmatch(name):
            raise ValueError(f"`{text}` names no dataset of the Hub: write `hf://org/name`.")
        return name
    path = Path(text).expanduser()
    if path.exists():
        return f"{path}" if is_saved(path) else None
    local = file_type_of(path) or FILE_ENDING.search(text) or has_magic(text)
    return text if HUB_ID.fullmatch(text) and not local else None
