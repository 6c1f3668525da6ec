"""Readers of YAML and JSON configuration files in a folder."""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from deployments.errors import ConfigurationError

SHIPPED = Path(__file__).parents[1]
"""The folder with the shipped files."""


def read(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file that holds one mapping.

    Raises:
        ConfigurationError: If it cannot be read, or would copy a secret from a block into plain text.
    """
    try:
        text = path.read_text()
        config = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigurationError(f"There is no file `{path}`.") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"`{path}` cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"`{path}` should hold a mapping, such as `deployments: […]`.")
    if "prefect.blocks." in text:
        raise ConfigurationError(
            f"`{path}` takes a field out of a block, and Prefect would keep it in clear: name the block instead, "
            "`llm: openai-llm/prod`."
        )
    return config


def entries(path: Path, key: str) -> list[dict[str, Any]]:
    """Return the list of named mappings under a key of a file.

    Raises:
        ConfigurationError: If there is no such list.
    """
    config = read(path).get(key)
    if not isinstance(config, list) or not all(isinstance(each, dict) and each.get("name") for each in config):
        raise ConfigurationError(f"`{path}` should hold a list under `{key}`, and a `name` in each of it.")
    return config


def reject_unknown_keys(path: Path, config: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Reject a configuration with keys that are not fields.

    Raises:
        ConfigurationError: If there is such a key; it suggests the nearest field.
    """
    for key in config:
        if key not in (fields := list(fields)):
            near = get_close_matches(str(key), fields, 1)
            cure = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(f'`{each}`' for each in fields)}."
            raise ConfigurationError(f"`{path}`: `{config.get('name', '?')}` has no `{key}`: {cure}")


class Folder:
    """A folder of configuration files, or a selection of them.

    Args:
        path: Path of the folder.
        names: Files to select, by their names without the ending; all when empty.

    Raises:
        ConfigurationError: If the folder has no file of a name.
    """

    def __init__(self, path: Path = SHIPPED, names: Iterable[str] = ()) -> None:
        self.path = path
        self._names = {Path(name).stem.replace("-", "_") for name in names}
        available = {_normalize(each): each for each in ["blocks", *self._all()]}
        for name in self._names:
            if name not in available:
                near = get_close_matches(name, available, 1)
                cure = (
                    f"did you mean `{available[near[0]]}`?" if near else f"there are {', '.join(available.values())}."
                )
                raise ConfigurationError(f"`{path}` holds no `{name}`: {cure}")

    def selects(self, name: str) -> bool:
        """Return whether a file is selected."""
        return not self._names or _normalize(name) in self._names

    def file(self, name: str) -> Path | None:
        """Return the path of a file, if it exists and is selected."""
        path = self.path / f"{name}.yaml"
        return path if path.exists() and self.selects(name) else None

    def automations(self) -> list[Path]:
        """Return the selected files with automations."""
        return [path for path in sorted((self.path / "automations").glob("*.yaml")) if self.selects(path.stem)]

    def deployments(self) -> list[Path]:
        """Return the selected files with deployments."""
        return [path for path in _deployments(self.path) if self.selects(path.stem)]

    def _all(self) -> list[str]:
        others = [self.path / "pools.yaml", self.path / "limits.yaml", *(self.path / "automations").glob("*.yaml")]
        return [path.stem for path in [*others, *_deployments(self.path)] if path.exists()]


def _deployments(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.yaml")) if path.stem not in ("pools", "limits")]


def _normalize(name: str) -> str:
    return name.replace("-", "_")
