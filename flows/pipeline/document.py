"""A pipeline as YAML that people read, compare and send: its steps, what differs from their defaults, its edges.

```yaml
format: 1
name: capitals
steps:
  data:
    class: LoadDataFromFiles
    data_files: questions.jsonl
  answer:
    class: TextGeneration
    llm:
      class: OpenAILLM
      model: gpt-5
edges:
- data >> answer
```

A file holds no secrets, and reading one runs nothing: classes are looked up among those that are imported already.
"""

import inspect
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from flows.dag import edges
from flows.errors import ConfigurationError
from flows.pipeline.serialize import Serializer, step_classes
from llms import LLM
from llms.any_llm import model_classes, resolve_model, secret_fields
from llms.config.strict import did_you_mean, format_validation_error
from tasks import Step, dag
from tasks.dag import DagBuilder

FORMAT_VERSION = 1
"""How files are laid out; one that says more is of a newer distilflow."""

KEYS = ("format", "name", "description", "steps", "edges")


@dataclass(frozen=True)
class Document:
    """What a file says; its classes are not looked up yet.

    Attributes:
        file: Its name, for errors.
        name: The pipeline's name, if it has one of its own.
        description: What the pipeline is for.
        steps: By name, the class and fields of each.
        edges: See `flows.dag.edges`.
    """

    file: str
    name: str | None
    description: str | None
    steps: Mapping[str, Mapping[str, Any]]
    edges: Sequence[str]

    def check(self) -> None:
        """Refuse classes that are not known, before anything is made."""
        for name, fields in self.steps.items():
            with self._error_location(f"step `{name}`"):
                _step_class(fields)

    def build(self) -> DagBuilder[Step]:
        """The steps, made and connected.

        Raises:
            ConfigurationError: Naming the file, the step, and the nearest right class, field or name.
        """
        wired = DagBuilder[Step]()
        outer = dag.current.set(wired)
        try:
            for name, fields in self.steps.items():
                with self._error_location(f"step `{name}`"):
                    _build_step(name, fields)
        finally:
            dag.current.reset(outer)
        named = {step.name: step for step in wired.steps}
        for text in self.edges:
            with self._error_location(f"edge `{text}`"):
                for source, target, route in edges.parse_edges(text, named):
                    wired.connect(named[source], named[target], route)
        return wired

    @contextmanager
    def _error_location(self, place: str) -> Iterator[None]:
        """Let errors say where they are."""
        try:
            yield
        except (TypeError, ValueError) as error:
            what = format_validation_error(error) if isinstance(error, ValidationError) else error
            raise ConfigurationError(f"`{self.file}`, {place}: {what}") from None


def write(name: str | None, description: str | None, wired: DagBuilder[Step]) -> str:
    """The text of a pipeline: the same for the same, whenever and wherever it is written.

    Raises:
        ConfigurationError: Naming the field that cannot be written down, and the cure.
    """
    plain = Serializer()
    steps = {step.name: plain.serialize_step(step) for step in wired.steps}
    document = {"format": FORMAT_VERSION, "name": name, "description": description, "steps": steps}
    document["edges"] = edges.format_edges(wired)
    known = {key: value for key, value in document.items() if value is not None}
    text = yaml.dump(known, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    if any(secret in text for secret in plain.secrets):
        raise ConfigurationError(
            "a key of one of the models stands in another field too, in clear: take it out of there."
        )
    return text


def read(path: str | Path) -> Document:
    """The document in a file.

    Raises:
        ConfigurationError: If there is none, or it is no pipeline.
    """
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506  # of safe_load's kind
    except FileNotFoundError:
        raise ConfigurationError(f"there is no `{path}`.") from None
    except OSError as error:
        raise ConfigurationError(f"`{path}` cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigurationError(f"`{path}` is no YAML: {' '.join(str(error).split())}.") from None
    if mistake := _layout_error(document):
        raise ConfigurationError(f"`{path}`: {mistake}")
    return Document(
        str(path), document.get("name"), document.get("description"), document["steps"], document.get("edges") or []
    )


def _layout_error(document: Any) -> str | None:
    """What is wrong with the shape of a document, if anything is."""
    if not isinstance(document, dict) or "steps" not in document:
        return "this is no pipeline, it has no `steps`: write one with `pipeline.save(…)`."
    for key in document:
        if key not in KEYS:
            return f"a pipeline has no `{key}`: {did_you_mean(str(key), KEYS)}"
    version = document.get("format")
    if version is None:
        return f"it does not say how it is laid out: begin it with `format: {FORMAT_VERSION}`."
    if version not in range(1, FORMAT_VERSION + 1):
        return (
            f"it is laid out in format {version}, and {FORMAT_VERSION} is the newest one known here: update distilflow."
        )
    for key in ("name", "description"):
        if not isinstance(document.get(key), str | None):
            return f"`{key}` is a text: put it in quotes."
    steps, drawn = document["steps"], document.get("edges") or []
    if not isinstance(steps, dict) or not all(isinstance(fields, dict) for fields in steps.values()):
        return "`steps` are written by name, each with its `class` and its fields below it."
    for name in steps:
        if not isinstance(name, str):
            return f"YAML takes the name of step `{name}` for something else: put it in quotes."
    if not isinstance(drawn, list) or not all(isinstance(edge, str) for edge in drawn):
        return '`edges` is a list of texts: `- a >> b`, `- a >> [b, c]`, `- "[b, c] >> d"`.'
    return None


def _step_class(fields: Mapping[str, Any]) -> type[Step]:
    known, name = step_classes(), fields.get("class")
    if not isinstance(name, str) or name not in known:
        raise ValueError(_unknown_class_message("step", name, known))
    return known[name]


def _build_step(name: str, fields: Mapping[str, Any]) -> Step:
    """A step of its class and fields; it takes its place in the pipeline being declared."""
    cls = _step_class(fields)
    if "name" in fields:
        raise ValueError("its name is what it stands under: leave out `name`.")
    given = {each: value for each, value in fields.items() if each != "class"}
    for each, field in cls.model_fields.items():
        if each in given and _accepts_models(field.annotation):
            given[each] = _resolve_models(given[each])
    return cls(name=name, **given)


def _accepts_models(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, LLM):
        return True
    return any(_accepts_models(each) for each in get_args(annotation))


def _resolve_models(value: Any) -> Any:
    """The models a field is given as a class and fields, or as a saved block and what differs from it."""
    match value:
        case {"class": name, **fields}:
            known = [each for each, cls in model_classes().items() if not inspect.isabstract(cls)]
            if name not in known:
                raise ValueError(_unknown_class_message("model", name, known))
            return resolve_model({"block_type_slug": name, **fields})
        case {"block": str(slug), **fields}:
            saved = resolve_model(slug)
            if hidden := secret_fields(type(saved)) & fields.keys():
                raise ValueError(f"`{min(hidden)}` does not belong in a file: keep it in the block.")
            changed = type(saved)(**{name: getattr(saved, name) for name in type(saved).model_fields} | fields)
            # a copy remembers its block, and is written as one again
            return saved.model_copy(update={name: getattr(changed, name) for name in fields})
        case dict():
            return {key: _resolve_models(each) for key, each in value.items()}
        case list():
            return [_resolve_models(each) for each in value]
    return value


def _unknown_class_message(kind: str, name: Any, known: Collection[str]) -> str:
    if not isinstance(name, str):
        return f"it has no `class`: write the {kind}'s, `class: {min(known)}`."
    if several := [each for each in known if each.endswith(f".{name}")]:
        return f"there are several classes `{name}`: write which, {' or '.join(f'`{each}`' for each in several)}."
    near = did_you_mean(name, [each for each in known if "." not in each])
    return (
        f"there is no {kind} `{name}`: {near} One of your own is known once its module is imported: do that first "
        "(in the shell: `--import my_module`)."
    )


class _Loader(yaml.SafeLoader):
    """YAML as plain data: no objects, nothing that makes a small file large, no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"`*{self.peek_event().anchor}` stands for another part: write that out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(f"{key.value}" for key, _ in node.value)
        if twice := next((key for key, count in keys.items() if count > 1), None):
            raise yaml.YAMLError(f"`{twice}` is written twice {node.start_mark}")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML for people: texts of several lines as they are, everything in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "")
)
