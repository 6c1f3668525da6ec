"""URLs in the fields of models: no secret is in one, and whose they are."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit


def url_fault(url: str) -> str | None:
    """Return why a base URL is refused, `None` if it is not: one with a secret would be in records and logs."""
    authority = re.split("[/?#]", url.rpartition("://")[2] if "://" in url else url, maxsplit=1)[0]
    if "@" in authority:
        return "an address with a login in it would be recorded: put the login into `api_key` or `default_headers`."
    if re.search("[?#]", url):
        return (
            "an address ends before a `?` or `#`: put a key into `api_key` or `default_headers`, and what else the "
            "server wants into the field or the runtime parameter for it."
        )
    return None


def origin(url: str) -> str:
    """Return scheme, host and port of a URL; of one without a scheme, as it is."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return url
    return f"{parts.scheme}://{parts.hostname}:{port}" if parts.hostname else url


def is_loopback(url: str) -> bool:
    """Return whether a URL, or `host:port`, is of this machine."""
    try:
        host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
