"""`flow`: Prefect's decorator for functions that make a dataset."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ParamSpec, cast

from prefect import Flow

from flows.dataset.distiset import Distiset
from flows.errors import ConfigurationError
from flows.pipeline.signature import expand_settings
from flows.reporting.states import with_row_state
from llms.any_llm import find_secret, plaintext_secret_message
from llms.config.redaction import hide_secrets

P = ParamSpec("P")


class DatasetFlow(Flow[P, Distiset]):
    """A flow that rejects secrets in its parameters before Prefect stores and logs them unvalidated."""

    if not TYPE_CHECKING:  # keeps the signature of Prefect's `__call__`

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run the flow.

            Raises:
                ConfigurationError: If a parameter holds a secret.
            """
            given = dict(zip(inspect.signature(self.fn).parameters, args, strict=False)) | kwargs
            for name, value in given.items():
                if name != "data" and (secret := find_secret(value)):  # rows may hold anything
                    raise ConfigurationError(f"`{name}`: {plaintext_secret_message(secret)}")
            return super().__call__(*args, **kwargs)

        def serialize_parameters(self, parameters: Any) -> dict[str, Any]:
            """Return the parameters as Prefect stores them, in clear: without secrets."""
            stored = super().serialize_parameters(parameters)
            return {name: value if name == "data" else hide_secrets(value) for name, value in stored.items()}

    def with_options(self, *args: Any, **kwargs: Any) -> "DatasetFlow[P]":
        """Return a copy with other options of Prefect's `@flow`."""
        copied = super().with_options(*args, **kwargs)
        copied.__class__ = type(self)  # Prefect makes a plain `Flow`
        return cast(DatasetFlow[P], copied)


def flow(function: Callable[P, Distiset], output: Path | EllipsisType | None = ..., **options: Any) -> DatasetFlow[P]:
    """Return a function that makes a dataset as a flow whose final state reports its rows.

    `**settings: Unpack[RunSettingsArgs]` in the signature becomes a parameter for each run setting. The dataset is not
    persisted as Prefect's result: it is in its folder.

    Args:
        function: Returns the dataset.
        output: Default of the setting `output`; by default the folder `outputs/<name of the function>`.
        **options: Options of Prefect's `@flow`, such as `name`.
    """
    folder = Path("outputs") / function.__name__ if isinstance(output, EllipsisType) else output
    run = with_row_state(expand_settings(function, folder))
    return DatasetFlow(run, persist_result=False, result_serializer="json", **options)
