"""Rows from a dataset of the Hugging Face Hub, or a folder that looks like one."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from llms.strict import nearest
from tasks.base import GeneratorStep
from tasks.typing import Row

if TYPE_CHECKING:  # `datasets` takes seconds to import
    from datasets import Dataset, IterableDataset

ROWS = 100  # per list from `process`


class LoadDataFromHub(GeneratorStep):
    """Brings the rows of a dataset of the Hub. It is downloaded once, and kept where `datasets` keeps things.

    A folder does as well: data files in the Hub's layout, or what `save_to_disk` wrote.

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
        """The columns of the dataset, or of its first row if it does not say.

        Raises:
            ValueError: If there is no such dataset, configuration or split, or it cannot be reached.
        """
        dataset = self._dataset()
        return dataset.column_names or list(next(iter(dataset), {}))

    def unload(self) -> None:
        """Let go of the open dataset; what was downloaded stays."""
        _open.cache_clear()

    def process(self, offset: int = 0) -> Iterator[list[Row]]:
        """The rows, from number `offset` on.

        Raises:
            ValueError: If there is no such dataset, configuration or split, or it cannot be reached.
        """
        # `skip` selects in a dataset that is on disk, and passes over whole files in a stream where it can.
        rows = enumerate(self._dataset().skip(offset), offset)
        if self.num_examples is not None:
            rows = islice(rows, max(self.num_examples - offset, 0))
        while chunk := list(islice(rows, ROWS)):
            yield [Row(columns, f"{self.repo_id}/{self.split}[{at}]") for at, columns in chunk]

    def check(self, columns: Sequence[str]) -> None:
        """Refuse a dataset that is not there, has no rows or lacks a column.

        Raises:
            ValueError: Naming the dataset, the column and the cure.
        """
        found, where = self.outputs, f"`{self.repo_id}/{self.split}`"
        if missing := [column for column in columns if column not in found]:
            raise ValueError(
                f"{where} has no `{missing[0]}`: it has {', '.join(f'`{each}`' for each in found) or 'no columns'}. "
                "If one of them is meant, map it with `input_mappings` in the step that reads it."
            )
        if not next(iter(self._dataset()), None):
            raise ValueError(f"{where} has no rows. Choose another `split`.")

    def _dataset(self) -> "Dataset | IterableDataset":
        return _open(self.repo_id, self.config, self.split, self.revision, self.streaming)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("dataset_info.json", "state.json")
    )


@lru_cache(maxsize=4)  # here and not on the step, which is compared and pickled
def _open(repo_id: str, config: str | None, split: str, revision: str | None, streaming: bool) -> Any:
    import datasets
    from datasets.exceptions import FileNotFoundDatasetsError

    if is_saved(Path(repo_id)):
        return _saved(repo_id, split)
    try:
        return datasets.load_dataset(repo_id, config, split=split, revision=revision, streaming=streaming)
    except FileNotFoundDatasetsError as error:
        raise ValueError(
            f"There is no dataset `{repo_id}`: {_sentence(error)} Is `repo_id` spelt `org/name`, or a folder with data "
            "files? A private or gated one needs a token: `HF_TOKEN`, or `hf auth login`."
        ) from error
    except FileNotFoundError as error:  # of a path, which is not looked up on the Hub
        raise ValueError(f"`{repo_id}` is no folder with data files: {_sentence(error)}") from error
    except ConnectionError as error:
        raise ValueError(
            f"`{repo_id}` cannot be reached: {_sentence(error)} There is no folder of this name, and the Hub does not "
            "answer: connect, or download the dataset and give its folder as `repo_id`."
        ) from error
    except ValueError as error:
        message = _sentence(error)
        if message.startswith(("Unknown split", "Bad split")):
            names = map(str, datasets.get_dataset_split_names(repo_id, config, revision=revision))
            raise ValueError(f"`{repo_id}` has no split `{split}`: {nearest(split, names)}") from error
        cure = " Say which with `config`." if "onfig" in message else ""
        raise ValueError(f"`{repo_id}` cannot be loaded: {message}{cure}") from error


def _sentence(error: Exception) -> str:
    """What `datasets` says, on one line and without its example."""
    return " ".join(f"{error}".partition("Example of usage")[0].split()).rstrip(".") + "."


def _saved(folder: str, split: str) -> Any:
    import datasets

    saved = datasets.load_from_disk(folder)
    # A lone dataset knows its split only if it was once part of several.
    splits = {f"{saved.split or 'train'}": saved} if isinstance(saved, datasets.Dataset) else saved
    if split not in splits:
        raise ValueError(f"`{folder}` has no split `{split}`: {nearest(split, map(str, splits))}")
    return splits[split]
