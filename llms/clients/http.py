"""HTTP sessions over aiohttp, without a limit on connections and with the environment's proxy."""

from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp


def open_session(**settings: Any) -> aiohttp.ClientSession:
    """Open a session without a limit: the engine admits requests, and a queue for connections spends the time-out."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), **settings)


@lru_cache(maxsize=100)
def environment_proxy(url: str) -> str | None:
    """Return the proxy of the environment. `trust_env` would also read `~/.netrc`, whose login replaces our key."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
