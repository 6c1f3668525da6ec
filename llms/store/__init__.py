"""The store of answers: one SQLite file for all runs of this machine."""

from llms.store.answer import StoredAnswer
from llms.store.connection import StoreError, connect, path, translate_errors
from llms.store.database import close, get, prepare, put
from llms.store.key import IRRELEVANT, key_of

__all__ = [
    "IRRELEVANT",
    "StoreError",
    "StoredAnswer",
    "close",
    "connect",
    "get",
    "key_of",
    "path",
    "prepare",
    "put",
    "translate_errors",
]
