"""Why a request got no answer, in four classes that say what to do about it.

LLMError
├── Throttled   the provider asks for patience: wait, it costs no attempt
├── Transient   bad weather (5xx, time-out, reset): try again, a bounded number of times
├── Rejected    this request can never work: record it on its row and go on
└── Fatal       no request can work (key, balance, model, package): stop and say what to do
    └── BudgetExceeded the run may spend no more: what is in flight is finished, nothing new begins
"""

from collections.abc import Mapping, Sequence
from typing import Any


class LLMError(Exception):
    """A request without an answer. Pickles, and never holds a key.

    Args:
        message: What is wrong, and the cure where there is one.
        status: The HTTP status, if one came.
        code: The provider's own code for it.
        request_id: The provider's name for the request, for its support desk.
        retry_after: Seconds the provider asked us to wait.
        attempts: How often the request was sent.
        headers: What the provider said of its rate limits, names in lower case.

    Attributes:
        spent: Where it stops a batch, the answers that had come: outputs with `usage` and `cost`, without texts.
    """

    paid_outputs: Sequence[Any] = ()

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
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.attempts = attempts
        self.headers = headers

    def __reduce__(self) -> Any:
        return (type(self), (self.message,), self.__dict__)


class Throttled(LLMError):
    """The provider asks for patience."""


class Transient(LLMError):
    """Something that may pass by itself."""


class Rejected(LLMError):
    """A request that can never work."""


class Fatal(LLMError):
    """A condition under which no request can work; the message says what to do."""


class BudgetExceeded(Fatal):
    """The run has spent what it may; it can be continued with more."""


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
"""What providers call a condition that no waiting mends, whatever status they send it with."""


def error_from_status(status: int, message: str, **facts: Any) -> LLMError:
    """The error for an HTTP status: by status first, by the provider's code second."""
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
