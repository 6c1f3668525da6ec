"""Compiled automata on disk: what took seconds to compile is read in milliseconds by every later process.

A file's name is a hash of all that it depends on, so no entry is ever stale. A file that cannot be read is compiled and
written again.
"""

import os
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llms.store import path as store_path
from llms.store.private_files import make_private_folder

REVISION = 2
"""Part of every name: raise it when the arrays of an automaton change their meaning."""

MAX_CACHE_BYTES = 2**30
"""Size of all files together at most; the least recently used are evicted."""

Arrays = dict[str, NDArray[np.int32]]


def tokenizer_digest(token_ids: Mapping[bytes, list[int]], end_token: int) -> bytes:
    """Hash a tokenizer's vocabulary."""
    return blake2b(repr((end_token, sorted(token_ids.items()))).encode(), digest_size=16).digest()


def file_name(regex: str, tokenizer: bytes) -> str:
    """Hash all that an automaton depends on: the compiler, the tokenizer's digest and the regular expression."""
    versioned = f"{REVISION} {version('outlines-core')} {regex}".encode(errors="surrogatepass")
    return blake2b(tokenizer + versioned, digest_size=16).hexdigest()


def read(name: str) -> Arrays | None:
    """Read the arrays under a name; `None` where there are none, or they are damaged."""
    file = cache_folder() / name
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {each: arrays[each] for each in arrays.files}
        os.utime(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return found


def write(name: str, arrays: Arrays) -> None:
    """Write arrays under a name, atomically; nothing where the disk does not take them."""
    folder = cache_folder()
    with suppress(OSError):  # without a file it is compiled again
        make_private_folder(folder)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                savez: Any = np.savez  # by its stub any of the arrays may be `allow_pickle`
                savez(file, **arrays)
            os.replace(temporary, folder / name)  # concurrent readers get the old file or this one
        except BaseException:
            os.unlink(temporary)
            raise
        _evict(folder)


def cache_folder() -> Path:
    """Return the folder of all files, beside the store of answers."""
    return store_path().parent / "guides"


def _evict(folder: Path) -> None:
    files = sorted(((each.stat().st_mtime, each.stat().st_size, each) for each in folder.iterdir()), reverse=True)
    total = 0
    for _, size, file in files:
        total += size
        if total > MAX_CACHE_BYTES:
            file.unlink(missing_ok=True)
