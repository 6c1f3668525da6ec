"""Fingerprint of a step, as plain data: its class and fields, its code, and whatever that code refers to."""

from typing import Any

from pydantic import SecretBytes, SecretStr

from llms import LLM, store
from llms.store.code import CodeHasher, NotHashable
from tasks import Step


def fingerprint(step: Step, more: Any = None) -> Any:
    """Return plain data that is equal for steps with equal results on equal rows.

    It contains the step's fields except `use_cache`, its model as its stored answers are keyed, and its code: that of
    the step, of functions in its fields, and of the functions and classes they refer to, as bytecode, constants,
    defaults and module-level values. An object of a user's class counts with the class and its `__getstate__()`.
    Installed packages, and the framework itself, count by name.

    Args:
        step: The step.
        more: Other values that affect the result, such as the routes of its rows.

    Raises:
        NotHashable: If a field holds a value that only its address in memory identifies.
    """
    hasher = StepHasher()
    values = {name: getattr(step, name) for name in type(step).model_fields if name != "use_cache"}
    values = {name: None if store.is_credential(name, value) else value for name, value in values.items()}
    return [
        hasher.describe(type(step)),
        [[name, hasher.describe_strictly(value)] for name, value in values.items()],
        hasher.describe_strictly(more),
    ]


class StepHasher(CodeHasher):
    """Describes a model as its stored answers are keyed, and all else as `CodeHasher` does."""

    def _describe(self, value: Any, opaque: bool) -> Any:
        match value:
            case SecretStr() | SecretBytes():
                return _describe_secret(value)
            case LLM():
                return _describe_model(value)
            case _:
                return super()._describe(value, opaque)


def _describe_secret(secret: SecretStr | SecretBytes) -> Any:
    try:
        return ["secret", store.hash_secret(secret)]
    except store.StoreError as error:
        raise NotHashable(f"{error}") from None


def _describe_model(llm: LLM) -> Any:
    try:
        return store.key_of(llm, [], llm.options({}).model_dump(exclude_unset=True), 0)
    except store.StoreError as error:
        raise NotHashable(f"{error}") from None
