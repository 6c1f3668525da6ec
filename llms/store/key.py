"""Keys of stored answers: hashes of all that an answer depends on, without secrets."""

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from prefect.blocks.core import Block
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

from llms.store.code import CodeHasher
from llms.store.connection import StoreError
from llms.store.salt import hash_secret
from llms.typing import ChatType, ModelInfo

IRRELEVANT: dict[str, str] = {
    "api_key": "who pays, not what is answered",
    "azure_identity": "who pays, not what is answered",
    "batch_size": "how many at once",
    "cuda_devices": "where it is computed",
    "deadline": "how long to wait",
    "device": "where it is computed",
    "device_map": "where it is computed",
    "generation_kwargs": "part of the options already",
    "max_concurrency": "how many at once",
    "max_schema_retries": "how often to ask again",
    "n_gpu_layers": "where it is computed",
    "n_parallel": "how many at once",
    "n_threads": "how fast",
    "price": "what it costs",
    "requests_per_minute": "how fast",
    "shared_limit": "how many at once",
    "timeout": "how long to wait",
    "tokens_per_minute": "how fast",
    "use_cache": "whether it is looked up",
}
"""Fields of models that are not part of a key, and why; all others are, except credentials."""

CREDENTIALS = frozenset({"api_key", "azure_ad_token", "credentials", "token"})
"""Secret fields that say who asks, not what is asked; any other secret counts as its salted hash."""

REVISION = 1
"""Part of every key: raise it if a shipped model's requests change so that old answers must not be used."""


def key_of(llm: ModelInfo, chat: ChatType, options: Mapping[str, Any], generation: int) -> str:
    """Return the key of one generation of one request.

    Args:
        llm: The model. Its block's slug, its name, the base URL in use and its fields except the `IRRELEVANT` count,
            not the module of its class; of secrets such as a gateway's headers a hash that the store salts. A user's
            own class counts with its name, its code and what that refers to (`llms.store.code`), so that after an edit
            no older answer is used.
        chat: The chat.
        options: The runtime parameters that are set, as `LLM.options` coerced them. `1`, `1.0` and `True` differ: an
            extra request is better than a wrong answer.
        generation: The number of the generation, from 0.

    Raises:
        StoreError: If a part of it is not plain data, or the store, which salts secrets, cannot be used.
    """
    cls: type = type(llm)
    fields = {
        name: None if is_credential(name, value) else value
        for name, value in llm.cache_fields().items()
        if name not in IRRELEVANT
    }
    try:
        request = _encode([REVISION, _class_identity(cls), llm.model_name, fields, chat, options, generation])
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"A request to `{cls.__name__}` has no name in the store of answers, because a part of it is not "
            f"plain data ({type(error).__name__}): make it so, or run with `use_cache=False`."
        ) from None
    return blake2b(request.encode(), digest_size=16).hexdigest()


def is_credential(name: str, value: Any) -> bool:
    """Return whether a field is a secret that says who asks, not what is asked."""
    return name in CREDENTIALS and isinstance(value, SecretStr | SecretBytes)


def _to_plain(value: Any) -> Any:
    match value:
        case SecretStr() | SecretBytes():
            return {"secret": hash_secret(value)}
        case BaseModel():
            return {name: getattr(value, name) for name in type(value).model_fields}
        case set() | frozenset():
            return sorted(map(_encode, value))
        case Path() if value.exists():  # its content may change, such as weights that are trained again
            files = sorted(each for each in value.iterdir() if each.is_file()) if value.is_dir() else [value]
            stamps = [[each.name, each.stat().st_size, each.stat().st_mtime_ns] for each in files]
            return [str(value.absolute()), stamps]
        case _:
            return to_jsonable_python(value)


def resolve_file(value: Any) -> Any:
    """Return the path that a text names if there is one, so that a key depends on its content; else the value."""
    path = os.path.expanduser(value) if isinstance(value, str) else None
    return Path(path) if path and os.path.exists(path) else value


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_to_plain).encode


@lru_cache(maxsize=100)
def _class_identity(cls: type) -> list[Any]:
    """Return the slug of a shipped class, and the code of a user's own, regardless of their modules.

    It is computed once in a process, before a model's first request: what its code refers to may change as it works,
    such as a list of its calls.
    """
    ours = next(each for each in cls.__mro__ if _package_of(each) == "llms" and issubclass(each, Block))
    return [ours.get_block_type_slug(), [] if _package_of(cls) == "llms" else CodeHasher().describe(cls)]


def _package_of(cls: type) -> str:
    return cls.__module__.partition(".")[0]
