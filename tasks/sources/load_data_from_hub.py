"""A source of rows in a dataset of the Hugging Face Hub, or in a folder of its layout."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from llms.config.strict import did_you_mean
from tasks.base import GeneratorStep
from tasks.typing import Row

CHUNK_ROWS = 100


class LoadDataFromHub(GeneratorStep):
    """Load rows from a dataset of the Hub, which is downloaded once into the cache of `datasets`.

    `repo_id` may also be a folder: data files in the Hub's layout, or the output of `save_to_disk`.

    Output columns: those of the dataset.

    Example:
        ```python
        from tasks import LoadDataFromHub

        LoadDataFromHub(repo_id="openai/gsm8k", config="main", split="test", num_examples=100)
        ```
    """

    repo_id: str = Field(description="The dataset: `org/name`, or a folder.", min_length=1)
    split: str = Field(default="train", description="Which part of it.", min_length=1)
    config: str | None = Field(default=None, description="Which of its configurations, if it has several.")
    revision: str | None = Field(default=None, description="A branch, tag or commit; the newest when empty.")
    streaming: bool = Field(default=False, description="Download rows as they are needed, and keep none of them.")
    num_examples: int | None = Field(default=None, gt=0, description="Rows to load, at most; all when empty.")

    @property
    def outputs(self) -> Sequence[str]:
        """The columns of the dataset, or of its first row if it does not declare them.

        Raises:
            ValueError: If there is no such dataset, configuration or split, or the Hub cannot be reached.
        """
        return _columns(self._dataset())

    def unload(self) -> None:
        """Close the dataset; keep the downloaded files."""
        _open_once.cache_clear()

    def process(self, offset: int = 0) -> Iterator[list[Row]]:
        """Yield the rows from number `offset` on.

        Raises:
            ValueError: If there is no such dataset, configuration or split, or the Hub cannot be reached.
        """
        dataset, stop = self._dataset(), self.num_examples
        if hasattr(dataset, "__len__"):  # a stream has none
            stop = len(dataset) if stop is None else min(stop, len(dataset))
        if stop is not None and offset >= stop:  # `skip` would raise
            return
        rest = dataset.skip(offset)
        for batch in (rest if stop is None else rest.take(stop - offset)).iter(CHUNK_ROWS):
            names = list(batch)
            rows = [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            yield [Row(row, f"{self.repo_id}/{self.split}[{number}]") for number, row in enumerate(rows, offset)]
            offset += len(rows)

    def check(self, columns: Sequence[str]) -> int | None:
        """Validate that the dataset exists and has rows with these columns.

        Returns:
            The number of rows; `None` when streaming.

        Raises:
            ValueError: Otherwise; it names the dataset, the column and the cure.
        """
        dataset, where = self._dataset(), f"`{self.repo_id}/{self.split}`"
        found = _columns(dataset)
        if missing := [column for column in columns if column not in found]:
            raise ValueError(
                f"{where} has no `{missing[0]}`: it has {', '.join(f'`{each}`' for each in found) or 'no columns'}. "
                "If one of them is meant, map it with `input_mappings` in the step that reads it."
            )
        if not next(iter(dataset), None):
            raise ValueError(f"{where} has no rows. Choose another `split`.")
        count = None if self.streaming else len(dataset)
        return min(count, self.num_examples) if count is not None and self.num_examples else count

    def _dataset(self) -> Any:
        """Open the dataset: a `Dataset`, or an `IterableDataset` when streaming."""
        # A folder may change, and is cheap to open.
        opener = _open if Path(self.repo_id).is_dir() else _open_once
        return opener(self.repo_id, self.config, self.split, self.revision, self.streaming)


def is_saved(folder: Path) -> bool:
    """Return whether a folder is the output of `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def _columns(dataset: Any) -> list[str]:
    return dataset.column_names or list(next(iter(dataset), {}))


def _open(repo_id: str, config: str | None, split: str, revision: str | None, streaming: bool) -> Any:
    import datasets  # slow
    from datasets.exceptions import FileNotFoundDatasetsError

    if is_saved(Path(repo_id)):
        return _open_saved(repo_id, split)
    try:
        return datasets.load_dataset(repo_id, config, split=split, revision=revision, streaming=streaming)
    except FileNotFoundDatasetsError as error:
        raise ValueError(
            f"There is no dataset `{repo_id}`: {_summarize(error)} Is `repo_id` spelt `org/name`, or a folder with "
            "data files? A private or gated one needs a token: `HF_TOKEN`, or `hf auth login`."
        ) from error
    except FileNotFoundError as error:  # for a path, which is not looked up on the Hub
        raise ValueError(f"`{repo_id}` is no folder with data files: {_summarize(error)}") from error
    except ConnectionError as error:
        raise ValueError(
            f"`{repo_id}` cannot be reached: {_summarize(error)} There is no folder of this name, and the Hub does not "
            "answer: connect, or download the dataset and give its folder as `repo_id`."
        ) from error
    except ValueError as error:
        message = _summarize(error)
        if message.startswith(("Unknown split", "Bad split")):
            names = map(str, datasets.get_dataset_split_names(repo_id, config, revision=revision))
            raise ValueError(f"`{repo_id}` has no split `{split}`: {did_you_mean(split, names)}") from error
        cure = " Say which with `config`." if "onfig" in message else ""
        raise ValueError(f"`{repo_id}` cannot be loaded: {message}{cure}") from error


_open_once = lru_cache(maxsize=4)(_open)  # not on the step, which is compared and pickled


def _summarize(error: Exception) -> str:
    """Return the message of an error of `datasets` on one line, without its example."""
    return " ".join(f"{error}".partition("Example of usage")[0].split()).rstrip(".") + "."


def _open_saved(folder: str, split: str) -> Any:
    import datasets

    saved = datasets.load_from_disk(folder)
    # A single dataset has the name of its split only if it was part of a `DatasetDict`.
    splits = {f"{saved.split or 'train'}": saved} if isinstance(saved, datasets.Dataset) else saved
    if split not in splits:
        raise ValueError(f"`{folder}` has no split `{split}`: {did_you_mean(split, map(str, splits))}")
    return splits[split]
