"""Decorators that turn functions into steps."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, get_type_hints

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from llms.config.strict import did_you_mean, format_validation_error
from tasks.base import GeneratorStep, GlobalStep, Step
from tasks.task import Task
from tasks.templates import Template, render, required_columns
from tasks.typing import ChatType, Row

_BASES: dict[str, type[Step]] = {"normal": Step, "global": GlobalStep, "generator": GeneratorStep}
_TEMPLATE: TypeAdapter[str] = TypeAdapter(Template)


def step(
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    step_type: Literal["normal", "global", "generator"] = "normal",
    keeps_rows: bool = True,
) -> Callable[[Callable[..., Any]], type[Any]]:
    """Turn a function that yields lists of rows into a step.

    The first argument of the function is a list of rows. A generator has none; it may have an argument `offset`, the
    number of the row to begin with. All other arguments become fields of the step: typed, coerced, set when it is
    created or when the pipeline runs.

    Args:
        inputs: Columns that every row must have.
        outputs: Columns that the step adds.
        step_type: `"normal"` for batches of rows, `"global"` for all rows at once, `"generator"` for a source.
        keeps_rows: Whether every row comes out or fails, which a pipeline checks; `False` for a normal step that drops
            rows.

    Raises:
        ValueError: If the function cannot be a step.

    Example:
        ```python
        from tasks import step

        @step(inputs=["generation"], outputs=["length"])
        def Length(rows, unit: str = "words"):
            for row in rows:
                row["length"] = len(row["generation"].split() if unit == "words" else row["generation"])
            yield rows
        ```
    """
    read, added = _column_list("step", "inputs", inputs), _column_list("step", "outputs", outputs)
    if step_type not in _BASES:
        raise ValueError(f"there is no `step_type={step_type!r}`: {did_you_mean(str(step_type), _BASES)}")
    source = step_type == "generator"
    if source and read:
        raise ValueError('a generator gets no rows: leave out `inputs`, or `step_type="generator"`.')

    def decorate(function: Callable[..., Any]) -> type[Any]:
        names = _argument_names(function)
        if not source and not names:
            raise ValueError(f"`{function.__name__}` takes no rows: its first argument is the list of them.")
        own = [name for name in names if name != "offset"] if source else names[1:]

        @wraps(function)  # the source code of the step is found through `__wrapped__`
        def process(self: Step, inputs: list[Row]) -> Iterator[list[Row]]:
            yield from _row_lists(function(inputs, **_field_values(self, own)), function)

        @wraps(function)
        def generate(self: Step, offset: int = 0) -> Iterator[list[Row]]:
            start = {"offset": offset} if "offset" in names else {}
            for rows in _row_lists(function(**start, **_field_values(self, own)), function):
                yield rows if start else rows[offset:]
                offset = max(offset - len(rows), 0)

        members = {
            "keeps_rows": keeps_rows and step_type == "normal",
            "process": generate if source else process,
            "inputs": property(lambda _: read),
            "outputs": property(lambda _: added),
        }
        return _make_class(function, _BASES[step_type], own, members, inspect.getdoc(function))

    return decorate


def task(
    inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
) -> Callable[[Callable[..., Any]], type[Any]]:
    """Turn a function that parses a generation into a task.

    The first two arguments of the function are the generation, `None` if the model returned none, and the row; it
    returns the columns in `outputs`. All other arguments become fields of the task. The docstring has the prompts, as
    YAML between two lines of `---`: `user_message_template`, and optionally `system_prompt`. Both are Jinja2 over the
    columns of the row; a column alone may be written `{column}`.

    Args:
        inputs: Columns that every row must have; by default those that the prompts name.
        outputs: Columns that the task adds.

    Raises:
        ValueError: If the function cannot be a task, or a prompt names a column that is not in `inputs`.

    Example:
        ```python
        from tasks import task

        @task(inputs=["instruction"], outputs=["words"])
        def Words(text, row):
            \"\"\"Counts the words of an answer.

            ---
            user_message_template: |
                Answer in one sentence: {instruction}
            ---
            \"\"\"
            return {"words": len((text or "").split())}
        ```
    """
    given, added = _column_list("task", "inputs", inputs), _column_list("task", "outputs", outputs)

    def decorate(function: Callable[..., Any]) -> type[Any]:
        names = _argument_names(function)
        if len(names) < 2:
            raise ValueError(f"`{function.__name__}` takes too little: its first arguments are the answer and the row.")
        own = names[2:]
        description, prompts = _parse_prompts(function)
        named = list(dict.fromkeys(name for prompt in prompts.values() for name in required_columns(prompt)))
        read = named if inputs is None else given
        if unknown := [name for name in named if name not in read]:
            raise ValueError(
                f"a prompt of `{function.__name__}` names `{unknown[0]}`, no column of `inputs`: "
                f"{did_you_mean(unknown[0], read)}"
            )

        def format_input(self: Task, row: Row) -> ChatType:
            user: ChatType = [{"role": "user", "content": render(prompts["user_message_template"], row)}]
            system = render(prompts["system_prompt"], row) if "system_prompt" in prompts else None
            return [{"role": "system", "content": system}, *user] if system else user

        @wraps(function)
        def format_output(self: Task, text: str | None, row: Row) -> Mapping[str, Any]:
            columns = function(text, row, **_field_values(self, own))
            if not isinstance(columns, Mapping):
                raise ValueError(f"`{function.__name__}` returned `{columns!r}`, no dictionary of columns.")
            if missing := [name for name in added if name not in columns]:
                raise ValueError(f"`{function.__name__}` returned no `{missing[0]}`, one of its `outputs`.")
            return columns

        members = {
            "format_input": format_input,
            "format_output": format_output,
            "inputs": property(lambda _: read),
            "outputs": property(lambda _: added),
        }
        return _make_class(function, Task, own, members, description)

    return decorate


def _column_list(decorator: str, name: str, columns: Any) -> list[str]:
    if callable(columns):
        raise ValueError(f"`@{decorator}` needs its brackets: write `@{decorator}()`.")
    if isinstance(columns, str):
        raise ValueError(f'`{name}` is a list of columns: write `{name}=["{columns}"]`.')
    return list(columns or [])


def _argument_names(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's arguments.

    Raises:
        ValueError: If it is asynchronous or variadic.
    """
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(f"`{function.__name__}` is asynchronous: steps are made of plain functions.")
    parameters = inspect.signature(function).parameters.values()
    if variadic := [each for each in parameters if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]:
        raise ValueError(f"`{function.__name__}` takes `{variadic[0]}`: give each argument a name of its own.")
    return [each.name for each in parameters]


def _make_class(
    function: Callable[..., Any], base: type[Step], own: list[str], members: dict[str, Any], description: str | None
) -> type[Any]:
    """Create a subclass of `base` with these members, and a field for each of the function's own arguments."""
    name, arguments = function.__name__, inspect.signature(function).parameters
    hints = {each: function.__annotations__[each] for each in own if each in function.__annotations__}
    hints = get_type_hints(SimpleNamespace(__annotations__=hints), function.__globals__, include_extras=True)
    fields: dict[str, Any] = {}
    for each in own:
        if hasattr(base, each) or each in base.model_fields or each.startswith(("_", "model_")):
            raise ValueError(f"`{name}` cannot have an argument `{each}`: every step has its own. Call it otherwise.")
        default = arguments[each].default
        field_description = _argument_description(function, each)
        if isinstance(default, FieldInfo):
            fields[each] = default
        elif default is inspect.Parameter.empty:
            fields[each] = Field(description=field_description)
        else:
            fields[each] = Field(default=default, description=field_description)
    body = {
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        "__doc__": description or name,
        "__annotations__": {"keeps_rows": ClassVar[bool]} | {each: hints.get(each, Any) for each in own},
    }
    metaclass: Any = type(base)
    return metaclass(name, (base,), body | fields | members)


def _field_values(step: Step, own: list[str]) -> dict[str, Any]:
    return {name: getattr(step, name) for name in own}


def _row_lists(made: Any, function: Callable[..., Any]) -> Iterator[list[Row]]:
    """Yield the lists of rows that a function yields or returns.

    A pair is a list and whether it is the last one.

    Raises:
        TypeError: If one is no list of rows.
    """
    for rows in [made] if isinstance(made, list) or made is None else made:
        rows = rows[0] if isinstance(rows, tuple) and len(rows) == 2 else rows
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            kind = "nothing" if rows is None else f"a `{type(rows).__name__}`"
            raise TypeError(f"`{function.__name__}` gave {kind}: it yields lists of rows, which are dictionaries.")
        yield rows


def _parse_prompts(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Split a docstring into its description and its prompts.

    Raises:
        ValueError: If the prompts are missing or malformed.
    """
    name, parts = function.__name__, re.split(r"^[ \t]*---[ \t]*$", inspect.getdoc(function) or "", flags=re.MULTILINE)
    if len(parts) != 3:
        raise ValueError(
            f"`{name}` needs a docstring with its prompts between two lines of `---`: `user_message_template: |`, and "
            "the prompt indented below it; `system_prompt: |` likewise if there is to be one."
        )
    try:
        prompts = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the prompts of `{name}` are no YAML: {error}") from None
    if not isinstance(prompts, dict) or "user_message_template" not in prompts:
        raise ValueError(f"the prompts of `{name}` have no `user_message_template: |`, the prompt indented below it.")
    for key, prompt in prompts.items():
        if key not in (known := ("system_prompt", "user_message_template")):
            raise ValueError(f"the prompts of `{name}` have a `{key}`: {did_you_mean(str(key), known)}")
        if not isinstance(prompt, str):
            raise ValueError(f"`{key}` of `{name}` is no text: write `{key}: |`, and the prompt indented below it.")
        try:
            prompts[key] = _TEMPLATE.validate_python(re.sub(r"(?<!\{)\{([A-Za-z_]\w*)\}(?!\})", r"{{ \1 }}", prompt))
        except ValidationError as error:
            raise ValueError(f"`{key}` of `{name}`: {format_validation_error(error)}") from None
    description = "\n\n".join(part for each in (parts[0], parts[2]) if (part := each.strip()))
    return description, {key: prompt.strip() for key, prompt in prompts.items()}


def _argument_description(function: Callable[..., Any], name: str) -> str | None:
    """Return the description of an argument, under `Args:` in the docstring."""
    _, _, arguments = (inspect.getdoc(function) or "").partition("Args:\n")
    found = re.search(rf"^[ ]+{name}(?: \(.*?\))?:[ ]*(.+)$", arguments, flags=re.MULTILINE)
    return found[1] if found else None
