"""Errors of a provider's HTTP responses and of its SDK's exceptions, as one of our own."""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from llms.errors import Fatal, LLMError, Rejected, Transient, error_from_status

UNSENT_ERROR_NAMES = re.compile("ClientConnector|ConnectionRefused|gaierror")
"""Class names of errors before anything was sent, in aiohttp and the standard library."""

TRANSIENT_ERROR_NAMES = re.compile(
    "timeout|connect|protocol|disconnect|network|payload|readerror|writeerror|jsondecode|incomplete", re.I
)
"""Class names of network errors, in any HTTP library an SDK may use."""


def error_from_response(status: int, headers: Mapping[str, str], text: str, url: str) -> LLMError:
    """Return the error for a response that is not 200."""
    message, code = error_message(text)
    folded = {name.lower(): value for name, value in headers.items()}
    wait = _retry_after(folded)
    return error_from_status(
        status,
        f"`{url}` answered {status}: {message}",
        code=code,
        request_id=folded.get("x-request-id") or folded.get("request-id"),
        retry_after=_google_retry_delay(text) if wait is None else wait,
        headers=rate_limit_headers(folded),
    )


def error_from_sdk(error: Exception, url: str, *, text: str | None = None) -> LLMError:
    """Return the error for an exception of a provider's SDK: by its HTTP status first, by its class second.

    Args:
        error: The SDK's exception.
        url: The requested URL, for the message.
        text: The body of the response, where the SDK has an attribute of its own for it.
    """
    if ours := own_error(error):
        return ours
    response = getattr(error, "response", None)
    statuses = [getattr(error, name, None) for name in ("status_code", "code", "status")]
    statuses += [getattr(response, name, None) for name in ("status_code", "status")]
    status = next((each for each in statuses if isinstance(each, int)), None)
    if status and status != 200:
        headers = getattr(error, "headers", None) or getattr(response, "headers", None) or {}
        return error_from_response(status, dict(headers), _error_body(error, response) if text is None else text, url)
    names = " ".join(cls.__name__ for cls in type(error).__mro__[:-2])
    if "InvalidURL" in names or "UnsupportedProtocol" in names:
        return Fatal(f"`{url}` is not an address: `base_url` is one, `https://` included.")
    causes = list(_causes(error))  # the class of the first may say something else: `ConnectTimeout: disconnected`
    unsent = any(UNSENT_ERROR_NAMES.search(type(each).__name__) for each in causes)
    timed_out = any(isinstance(each, TimeoutError) for each in causes) or len(causes) == 1 and "Timeout" in names
    if isinstance(error, TimeoutError) or "Timeout" in names and not f"{error}":
        return Transient(f"`{url}` gave no answer in time (`timeout`).", timed_out=timed_out, unsent=unsent)
    cause = f" ({error.__cause__})" if error.__cause__ else ""  # some SDKs say only "Connection error."
    detail = error_message(_error_body(error, response))[0] if status == 200 else error
    message = f"`{url}`: {type(error).__name__}: {detail}{cause}"
    if isinstance(error, OSError | TimeoutError) or status == 200 or TRANSIENT_ERROR_NAMES.search(names):
        return Transient(message, status=status, timed_out=timed_out, unsent=unsent)
    return Rejected(message)


def own_error(error: BaseException | None) -> LLMError | None:
    """Return the error of ours behind an SDK's, such as one that `llms.clients.http` raised inside it, or `None`."""
    return next((each for each in _causes(error) if isinstance(each, LLMError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    seen = set[int]()
    while error and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def rate_limit_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers about rate limits, names in lower case."""
    return {name.lower(): value for name, value in headers.items() if "limit" in name.lower()}


def error_message(text: str) -> tuple[str, str | None]:
    """Return the message and the code in the body of an error, whatever its shape."""
    try:
        body = json.loads(text)
    except ValueError:
        return text[:500].strip() or "nothing", None
    if not isinstance(body, dict):
        return str(body)[:500], None
    error = body.get("error") or body
    if not isinstance(error, dict):
        return str(error)[:500], body.get("error_type")
    details = error.get("details") or []
    details = [details] if isinstance(details, dict) else details
    reasons = [each.get("reason") or each.get("error_code") for each in details if isinstance(each, dict)]
    codes = [error.get(name) for name in ("error_code", "code", "type", "status")] + [body.get("error_type")]
    codes[1:1] = reasons
    code = next((each for each in codes if each and isinstance(each, str)), None)
    message = error.get("message") or error.get("detail") or error
    return str(message)[:500], code


def _error_body(error: Exception, response: Any) -> str:
    """Return the body of the response as text, from whichever attribute the SDK has for it."""
    for body in (getattr(error, "details", None), getattr(error, "body", None), getattr(error, "error", None)):
        if body and isinstance(body, str | dict | list):
            return body if isinstance(body, str) else json.dumps(body, default=str)
    try:
        text = response.text
    except Exception:  # a stream that was not read, or no response at all: the exception's own message is left
        text = None
    return text if text and isinstance(text, str) else str(error)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, given as milliseconds, seconds or a date; `None` if absent or nonsense."""
    for name, seconds in (
        ("retry-after-ms", lambda value: float(value) / 1000),
        ("retry-after", float),
        ("retry-after", lambda value: parsedate_to_datetime(value).timestamp() - time.time()),
    ):
        try:
            wait = seconds(headers[name])
        except (KeyError, OverflowError, ValueError):
            continue
        return max(0.0, wait) if math.isfinite(wait) else None
    return None


def _google_retry_delay(text: str) -> float | None:
    """Return the seconds to wait in the body of a Google API's error."""
    delay = re.search(r'"retryDelay":\s*"([\d.]+)s"', text)
    return float(delay[1]) if delay else None
