"""Automata on disk: what took seconds to compile once is read in milliseconds by every later process.

A file is named after all that it depends on, so that none is ever out of date. Whoever finds one that cannot be read
compiles again and puts it right.
"""

import os
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llms.store import path as store

REVISION = 2
"""Part of every name: raise it when the arrays of an automaton come to mean something else."""

MAX_CACHE_BYTES = 2**30
"""Bytes that the files may have together: those that were not read for the longest time make room."""

Arrays = dict[str, NDArray[np.int32]]


def tokenizer_digest(pieces: Mapping[bytes, list[int]], end: int) -> bytes:
    """What tells one tokenizer from another."""
    return blake2b(repr((end, sorted(pieces.items()))).encode(), digest_size=16).digest()


def file_name(regex: str, tokenizer: bytes) -> str:
    """The name of a regular expression's automaton over a tokenizer's tokens, whatever compiles it."""
    what = f"{REVISION} {version('outlines-core')} {regex}".encode(errors="surrogatepass")
    return blake2b(tokenizer + what, digest_size=16).hexdigest()


def read(name: str) -> Arrays | None:
    """The arrays under a name; `None` where there are none, or they are damaged."""
    file = cache_folder() / name
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {each: arrays[each] for each in arrays.files}
        os.utime(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return found


def write(name: str, arrays: Arrays) -> None:
    """Keep arrays under a name: all of them or, where the disk does not take them, none."""
    folder = cache_folder()
    with suppress(OSError):  # without a file it is compiled again
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            os.replace(temporary, folder / name)  # whoever reads meanwhile has the one before, or this one
        except BaseException:
            os.unlink(temporary)
            raise
        _evict(folder)


def _evict(folder: Path) -> None:
    files = sorted(((each.stat().st_mtime, each.stat().st_size, each) for each in folder.iterdir()), reverse=True)
    total = 0
    for _, size, file in files:
        total += size
        if total > MAX_CACHE_BYTES:
            file.unlink(missing_ok=True)


def cache_folder() -> Path:
    return store().parent / "guides"
