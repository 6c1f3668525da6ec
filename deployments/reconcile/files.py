"""The files of a folder: which there are, and what they say."""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from deployments.errors import ConfigurationError

SHIPPED = Path(__file__).parents[1]
"""The folder of the shipped files."""


def read(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds one mapping.

    Raises:
        ConfigurationError: If it cannot be read, or would copy a block's secret to where everybody sees it.
    """
    try:
        text = path.read_text()
        said = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigurationError(f"There is no file `{path}`.") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"`{path}` cannot be read: {error}") from None
    if not isinstance(said, dict):
        raise ConfigurationError(f"`{path}` should hold a mapping, such as `deployments: […]`.")
    if "prefect.blocks." in text:
        raise ConfigurationError(
            f"`{path}` takes a field out of a block, and Prefect would keep it in clear: name the block instead, "
            "`llm: openai-llm/prod`."
        )
    return said


def entries(path: Path, key: str) -> list[dict[str, Any]]:
    """The list of named things that a file holds under a key.

    Raises:
        ConfigurationError: If it is something else.
    """
    said = read(path).get(key)
    if not isinstance(said, list) or not all(isinstance(each, dict) and each.get("name") for each in said):
        raise ConfigurationError(f"`{path}` should hold a list under `{key}`, and a `name` in each of it.")
    return said


def reject_unknown_keys(path: Path, said: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Refuse what nobody would heed.

    Raises:
        ConfigurationError: Naming the first such field, and the one that was meant.
    """
    for key in said:
        if key not in (fields := list(fields)):
            near = get_close_matches(str(key), fields, 1)
            cure = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(f'`{each}`' for each in fields)}."
            raise ConfigurationError(f"`{path}`: `{said.get('name', '?')}` has no `{key}`: {cure}")


class Folder:
    """A folder of files to apply, or some of them.

    Args:
        path: Where it is.
        names: Files to limit it to, by their names without the ending; all when empty.

    Raises:
        ConfigurationError: If it holds nothing of such a name.
    """

    def __init__(self, path: Path = SHIPPED, names: Iterable[str] = ()) -> None:
        self.path = path
        self._names = {Path(name).stem.replace("-", "_") for name in names}
        there = {_plain(each): each for each in ["blocks", *self._all()]}
        for name in self._names:
            if name not in there:
                near = get_close_matches(name, there, 1)
                cure = f"did you mean `{there[near[0]]}`?" if near else f"there are {', '.join(there.values())}."
                raise ConfigurationError(f"`{path}` holds no `{name}`: {cure}")

    def wants(self, name: str) -> bool:
        """Whether it is to be applied."""
        return not self._names or _plain(name) in self._names

    def file(self, name: str) -> Path | None:
        """A file of this name, if there is one and it is to be applied."""
        path = self.path / f"{name}.yaml"
        return path if path.exists() and self.wants(name) else None

    def automations(self) -> list[Path]:
        """The files with an automation each."""
        return [path for path in sorted((self.path / "automations").glob("*.yaml")) if self.wants(path.stem)]

    def deployments(self) -> list[Path]:
        """The files with deployments, one for each flow."""
        return [path for path in _deployments(self.path) if self.wants(path.stem)]

    def _all(self) -> list[str]:
        others = [self.path / "pools.yaml", self.path / "limits.yaml", *(self.path / "automations").glob("*.yaml")]
        return [path.stem for path in [*others, *_deployments(self.path)] if path.exists()]


def _deployments(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.yaml")) if path.stem not in ("pools", "limits")]


def _plain(name: str) -> str:
    return name.replace("-", "_")
