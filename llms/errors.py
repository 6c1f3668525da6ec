"""Errors of requests, by what the engine does about them.

LLMError
├── Throttled   HTTP 429: all requests pause, the request is sent again; this costs no attempt
├── Transient   5xx, timeout, lost connection: the request is sent again with backoff, a limited number of times
├── Rejected    invalid request: only its own row fails
└── Fatal       no request can work (key, balance, model, package): the run stops
    └── BudgetExceeded  the run may spend no more: requests in flight finish, no new ones are sent
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class LLMError(Exception):
    """The error of a request; it pickles and never holds a key.

    Args:
        message: The problem, and how to solve it if that is known.
        status: The HTTP status, if there was a response.
        code: The provider's error code.
        request_id: The provider's ID of the request, for its support.
        retry_after: Seconds to wait, as the provider demands.
        attempts: Times the request was sent.
        headers: The provider's rate limit headers, names in lower case.
        timed_out: Whether the request was sent, and nothing came back within its `timeout`.
        unsent: Whether the request cannot have reached the provider.

    Attributes:
        model_usage: `ModelUsage` by model of a batch that this error stopped in another process.
    """

    model_usage: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        attempts: int = 1,
        headers: Mapping[str, str] | None = None,
        timed_out: bool = False,
        unsent: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.attempts = attempts
        self.headers = headers
        self.timed_out = timed_out
        self.unsent = unsent

    @property
    def may_be_billed(self) -> bool:
        """Whether the provider may have generated an answer that never came: nobody else says what it cost."""
        return isinstance(self, Transient) and self.status in (None, 200) and not self.unsent

    def __reduce__(self) -> Any:
        return (type(self), (self.message,), self.__dict__)


class Throttled(LLMError):
    """The provider throttles requests (HTTP 429)."""


class Transient(LLMError):
    """A temporary error: the same request may work later."""


class Rejected(LLMError):
    """An error of this request alone: it can never work."""


class Fatal(LLMError):
    """An error of all requests: none can work; the message says what to do."""


class BudgetExceeded(Fatal):
    """The run has used up its budget; it can be resumed with a larger one."""


FATAL_CODES = frozenset(
    {
        "API_KEY_INVALID",
        "billing_hard_limit_reached",
        "contract_spend_limit_reached",
        "credit_balance_too_low",
        "enforced_spend_limit_reached",
        "insufficient_quota",
        "invalid_api_key",
        "linked_organization_spend_limit_reached",
        "model_not_found",
    }
)
"""Providers' codes of errors that no retry solves, whatever their HTTP status."""


def error_from_status(status: int, message: str, **facts: Any) -> LLMError:
    """Return the error for an HTTP status; a fatal code of the provider takes precedence."""
    match status:
        case _ if facts.get("code") in FATAL_CODES:
            kind = Fatal
        case 429:
            kind = Throttled
        case 401 | 402 | 403 | 404:
            kind = Fatal
        case 408 | 409 | 424 | 425:
            kind = Transient
        case _ if status >= 500:
            kind = Transient
        case _:
            kind = Rejected
    return kind(message, status=status, **facts)
