"""A pipeline as a YAML document: its steps with their non-default fields, and its edges.

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

A file holds no secrets, and reading one runs no code: classes are looked up among the imported ones.
"""

import inspect
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from flows.dag.edges import format_edges, parse_edges
from flows.errors import ConfigurationError
from flows.pipeline.serialize import Serializer, step_classes
from llms import LLM, RemoteLLM
from llms.any_llm import model_classes, resolve_model, secret_fields
from llms.config.strict import did_you_mean, format_validation_error
from tasks import Step, dag
from tasks.dag import DagBuilder

FORMAT_VERSION = 1
"""Version of the format that is written; files up to this version can be read."""

KEYS = ("format", "name", "description", "steps", "edges")


@dataclass(frozen=True)
class Document:
    """The parsed content of a file; its classes are not looked up yet.

    Attributes:
        file: Path of the file, for errors.
        name: Name of the pipeline, if it has one of its own.
        description: Description of the pipeline.
        steps: Class and fields of each step, by name.
        edges: Edges in the syntax of `flows.dag.edges`.
    """

    file: str
    name: str | None
    description: str | None
    steps: Mapping[str, Mapping[str, Any]]
    edges: Sequence[str]

    def check(self) -> None:
        """Check that all classes are known, without creating a step.

        Raises:
            ConfigurationError: If one is not.
        """
        for name, fields in self.steps.items():
            with self._error_location(f"step `{name}`"):
                _step_class(fields)

    def build(self) -> DagBuilder[Step]:
        """Create the steps and connect them.

        Raises:
            ConfigurationError: If one cannot be created; the message names the file, the step, and the closest known
                class, field or name.
        """
        builder = DagBuilder[Step]()
        outer = dag.current.set(builder)
        try:
            for name, fields in self.steps.items():
                with self._error_location(f"step `{name}`"):
                    _build_step(name, fields)
        finally:
            dag.current.reset(outer)
        steps = {step.name: step for step in builder.steps}
        for text in self.edges:
            with self._error_location(f"edge `{text}`"):
                for source, target, route in parse_edges(text, steps):
                    builder.connect(steps[source], steps[target], route)
        return builder

    @contextmanager
    def _error_location(self, place: str) -> Iterator[None]:
        """Raise errors inside as `ConfigurationError`, with the file and the place in it."""
        try:
            yield
        except (TypeError, ValueError) as error:
            message = format_validation_error(error) if isinstance(error, ValidationError) else error
            raise ConfigurationError(f"`{self.file}`, {place}: {message}") from None


def write(name: str | None, description: str | None, builder: DagBuilder[Step]) -> str:
    """Return a pipeline as YAML; equal pipelines give equal text.

    Raises:
        ConfigurationError: If a field cannot be serialized; the message names it and says what to do.
    """
    serializer = Serializer()
    steps = {step.name: serializer.serialize_step(step) for step in builder.steps}
    document = {"format": FORMAT_VERSION, "name": name, "description": description, "steps": steps}
    document["edges"] = format_edges(builder)
    stated = {key: value for key, value in document.items() if value is not None}
    text = yaml.dump(stated, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    if any(secret in text for secret in serializer.secrets):
        raise ConfigurationError(
            "a key of one of the models stands in another field too, in clear: take it out of there."
        )
    return text


def read(path: str | Path) -> Document:
    """Read a file.

    Raises:
        ConfigurationError: If there is none, or it is no pipeline.
    """
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # a subclass of yaml.SafeLoader
    except FileNotFoundError:
        raise ConfigurationError(f"there is no `{path}`.") from None
    except OSError as error:
        raise ConfigurationError(f"`{path}` cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigurationError(f"`{path}` is no YAML: {' '.join(str(error).split())}.") from None
    if error := _format_error(document):
        raise ConfigurationError(f"`{path}`: {error}")
    return Document(
        str(path), document.get("name"), document.get("description"), document["steps"], document.get("edges") or []
    )


def _format_error(document: Any) -> str | None:
    """Return what is wrong with the structure of a document, or `None`."""
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
    steps, edges = document["steps"], document.get("edges") or []
    if not isinstance(steps, dict) or not all(isinstance(fields, dict) for fields in steps.values()):
        return "`steps` are written by name, each with its `class` and its fields below it."
    for name in steps:
        if not isinstance(name, str):
            return f"YAML takes the name of step `{name}` for something else: put it in quotes."
    if not isinstance(edges, list) or not all(isinstance(edge, str) for edge in edges):
        return '`edges` is a list of texts: `- a >> b`, `- a >> [b, c]`, `- "[b, c] >> d"`.'
    return None


def _step_class(fields: Mapping[str, Any]) -> type[Step]:
    classes, name = step_classes(), fields.get("class")
    if not isinstance(name, str) or name not in classes:
        raise ValueError(_unknown_class_message("step", name, classes))
    return classes[name]


def _build_step(name: str, fields: Mapping[str, Any]) -> Step:
    """Create a step from its class and fields; it joins the pipeline being declared."""
    cls = _step_class(fields)
    if "name" in fields:
        raise ValueError("its name is what it stands under: leave out `name`.")
    values = {field: value for field, value in fields.items() if field != "class"}
    for field, info in cls.model_fields.items():
        if field in values and _accepts_models(info.annotation):
            values[field] = _resolve_models(values[field])
    step = cls(name=name, **values)
    for llm in _models_in([getattr(step, field) for field in cls.model_fields]):
        if not getattr(llm, "_block_document_name", None):
            _refuse_strangers(llm)
    return step


def _accepts_models(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, LLM):
        return True
    return any(_accepts_models(each) for each in get_args(annotation))


def _resolve_models(value: Any) -> Any:
    """Return a field's value with its models, each written as class and fields, or as saved block and changes."""
    match value:
        case {"class": name, **fields}:
            names = [name for name, cls in model_classes().items() if not inspect.isabstract(cls)]
            if name not in names:
                raise ValueError(_unknown_class_message("model", name, names))
            return resolve_model({"block_type_slug": name, **fields})
        case {"block": str(slug), **fields}:
            saved = resolve_model(slug)
            if secrets := secret_fields(type(saved)) & fields.keys():
                raise ValueError(f"`{min(secrets)}` does not belong in a file: keep it in the block.")
            validated = type(saved)(**{name: getattr(saved, name) for name in type(saved).model_fields} | fields)
            _refuse_strangers(validated, saved)
            # a copy keeps the block's name, and is written as that block again
            return saved.model_copy(update={name: getattr(validated, name) for name in fields})
        case dict():
            return {key: _resolve_models(each) for key, each in value.items()}
        case list():
            return [_resolve_models(each) for each in value]
    return value


def _models_in(value: Any) -> Iterator[RemoteLLM]:
    """Yield the models behind an API in a value, and in lists, dictionaries and models in it."""
    match value:
        case RemoteLLM():
            yield value
        case BaseModel():
            yield from _models_in([getattr(value, name) for name in type(value).model_fields])
        case Mapping():
            yield from _models_in(list(value.values()))
        case list() | tuple():
            for each in value:
                yield from _models_in(each)
        case _:
            pass


def _refuse_strangers(llm: LLM, saved: LLM | None = None) -> None:
    """Refuse a model that would bring a key, which the file does not hold, to a host that only the file names.

    Args:
        llm: The model.
        saved: The block that it is, with changes.

    Raises:
        ValueError: If it would; the message says what to type where it is meant.
    """
    if not isinstance(llm, RemoteLLM):
        return
    known = saved.foreign_origins() if isinstance(saved, RemoteLLM) else set[str]()
    if (strange := llm.foreign_origins() - known) and (saved or llm.takes_key_from_environment()):
        whose = "the block's key" if saved else f"your key (`{llm.api_key_env()}`)" if llm.api_key_env() else "your key"
        variable, slug = type(llm).base_url_env(), type(llm).get_block_type_slug()
        consent = f"set `{variable}={llm.base_url}`, or " if variable else ""
        raise ValueError(
            f"this file would send {whose} to `{min(strange)}`, which nothing but the file names. If you mean it, "
            f"{consent}save a block with that address and its key, and write `llm: {slug}/NAME`."
        )


def _unknown_class_message(kind: str, name: Any, known: Collection[str]) -> str:
    if not isinstance(name, str):
        return f"it has no `class`: write the {kind}'s, `class: {min(known)}`."
    if several := [each for each in known if each.endswith(f".{name}")]:
        return f"there are several classes `{name}`: write which, {' or '.join(f'`{each}`' for each in several)}."
    suggestion = did_you_mean(name, [each for each in known if "." not in each])
    return (
        f"there is no {kind} `{name}`: {suggestion} One of your own is known once its module is imported: do that "
        "first (in the shell: `--import my_module`)."
    )


class _Loader(yaml.SafeLoader):
    """A safe loader that also rejects aliases (which make a small file large) and duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"`*{self.peek_event().anchor}` stands for another part: write that out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(f"{key.value}" for key, _ in node.value)
        if duplicate := next((key for key, count in keys.items() if count > 1), None):
            raise yaml.YAMLError(f"`{duplicate}` is written twice {node.start_mark}")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A dumper with multi-line strings as blocks, and without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "")
)
