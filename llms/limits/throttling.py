"""Refusals of a provider: what is counted of them, and pauses that a user is told of."""

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

MAX_PAUSE_S = 600.0
"""A provider that asks for a longer pause is asked again after this one."""

REPORTED_PAUSE_S = 60.0
"""Longer pauses are told in the log: a run that waits looks like one that hangs."""

logger = logging.getLogger(__name__)


class ThrottleEpisode(NamedTuple):
    """Refusals of requests sent before the first of them, counted as one."""

    started_at: float
    over_concurrency: bool  # too many in flight, rather than too fast
    in_flight: int
    accepted: int  # requests sent since the episode before, without the refused ones
    seconds: float  # since the episode before


@dataclass(slots=True)
class LimiterCounts:
    """Counts for the run's summary."""

    admitted: int = 0
    throttled: int = 0
    failed: int = 0
    episodes: int = 0
    peak_in_flight: int = 0
    seconds_paused: float = 0.0


def report_pause(name: str, asked_s: float, pause_s: float) -> None:
    """Tell in the log what a provider asks for, and when the next request goes."""
    at = datetime.now() + timedelta(seconds=pause_s)
    logger.warning("%s asks to wait %s: the next request goes at %s", name, _duration(asked_s), f"{at:%H:%M}")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:,.0f} h"


def describe_key(key: Hashable) -> str:
    """Return the model and the host of a limiter's key, as far as it has them."""
    parts = [part for part in key if isinstance(part, str)] if isinstance(key, tuple) else []
    hosts = [host for part in parts if "://" in part and (host := urlsplit(part).hostname)]
    models = [part for part in parts if "://" not in part]
    return " at ".join(f"`{part}`" for part in [*models[-1:], *hosts]) or "The provider"
