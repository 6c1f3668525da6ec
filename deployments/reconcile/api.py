"""Client of Prefect's REST API: get, send and upsert JSON."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from deployments.errors import ConfigurationError

START_HINT = "Start one with `prefect server start`, or all of it with `python -m deployments serve`."


class Api:
    """A connection to the server at `PREFECT_API_URL`."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client

    def get(self, path: Any, **ids: str) -> dict[str, Any] | None:
        """Return a resource, or `None` if there is none."""
        try:
            return self.client.request("GET", path, path_params=ids).json()
        except PrefectHTTPStatusError as error:
            if error.response.status_code == 404:
                return None
            raise

    def send(self, method: Literal["POST", "PUT", "PATCH"], path: Any, body: Any, **ids: str) -> Any:
        """Send a request, and return the server's reply.

        Raises:
            ConfigurationError: If the server rejects it; with its reason.
        """
        try:
            reply = self.client.request(method, path, path_params=ids, json=body)
        except PrefectHTTPStatusError as error:
            raise ConfigurationError(f"Prefect refuses it: {_reason(error.response)}") from None
        return reply.json() if reply.content else None

    def upsert(
        self,
        exists: object,
        path: Any,
        collection: Any,
        body: dict[str, Any],
        *,
        method: Literal["PUT", "PATCH"] = "PATCH",
        immutable: Collection[str] = (),
        **ids: str,
    ) -> None:
        """Update a resource, or create it.

        Args:
            exists: Whether the resource exists.
            path: Path of the resource, for an update.
            collection: Path of its collection, for a creation.
            body: Its fields.
            method: Method of an update.
            immutable: Fields that an update leaves out.
            ids: Parameters of the paths.
        """
        if exists:
            self.send(method, path, {key: value for key, value in body.items() if key not in immutable}, **ids)
        else:
            self.send("POST", collection, body, **ids)


@contextmanager
def connect() -> Iterator[Api]:
    """Connect to the configured API.

    Raises:
        ConfigurationError: If none is configured, or it does not answer; with the command to type.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigurationError(
            "No Prefect API is configured: `prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api` names one. "
            f"{START_HINT}"
        )
    try:
        with get_client(sync_client=True) as client:
            yield Api(client)
    except (httpx.TransportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "reach API" not in str(error):
            raise
        raise ConfigurationError(
            f"Prefect's API at `{_public(url)}` does not answer ({_cause(error)}). {START_HINT}"
        ) from None
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise ConfigurationError(
            f"Prefect's API at `{_public(url)}` wants to know who asks: `prefect config set PREFECT_API_AUTH_STRING=…` "
            "(user:password), or `PREFECT_API_KEY=…` for Prefect Cloud."
        ) from None


def _public(url: str) -> str:
    return str(httpx.URL(url).copy_with(username=None, password=None))


def _cause(error: BaseException) -> str:
    while error.__cause__:
        error = error.__cause__
    return str(error) or type(error).__name__


def _reason(reply: httpx.Response) -> str:
    try:
        detail = reply.json()
    except ValueError:
        return reply.text[:500]
    return str(detail.get("detail") or detail.get("exception_detail") or detail)
