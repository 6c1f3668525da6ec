"""Hashes of secrets that are part of a request, such as a gateway's headers: none can be guessed without the store."""

import secrets
from contextlib import closing
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from pydantic import SecretBytes, SecretStr

from llms.store.connection import connect, path, translate_errors

SALT_BYTES = 32

_CREATE = "CREATE TABLE IF NOT EXISTS salt (id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB NOT NULL)"


def hash_secret(secret: SecretStr | SecretBytes) -> str:
    """Return a hash that is equal in all processes that use the same store, and tells nothing without its salt.

    Raises:
        StoreError: If the store cannot be used.
    """
    value = secret.get_secret_value()
    return blake2b(value.encode() if isinstance(value, str) else value, key=_salt(), digest_size=16).hexdigest()


def _salt() -> bytes:
    file = path()
    with translate_errors(file):
        if not file.exists():
            connect(file).close()
        return _read_salt(file, file.stat().st_ino)  # a store that was deleted and made anew has another salt


@lru_cache(maxsize=16)
def _read_salt(file: Path, inode: int) -> bytes:
    """Return the salt in a store's file; the first process that asks makes it."""
    with translate_errors(file), closing(connect(file)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_CREATE)
        connection.execute("INSERT OR IGNORE INTO salt VALUES (1, ?)", [secrets.token_bytes(SALT_BYTES)])
        (salt,) = connection.execute("SELECT value FROM salt").fetchone()
        connection.execute("COMMIT")
    return salt
