"""The shared event loop: what is cancelled with a run."""

import asyncio
from concurrent.futures import CancelledError

import pytest

from llms.clients import event_loop


def test_what_starts_after_a_scope_was_cancelled_is_cancelled_too():
    """A batch can be on its way to its first request when Ctrl-C comes."""
    with event_loop.cancel_scope() as cancel:
        cancel()
        with pytest.raises(CancelledError):
            event_loop.run(asyncio.sleep(60))


def test_after_a_fatal_error_of_one_batch_others_may_start():
    with event_loop.cancel_scope():
        event_loop.cancel_all()
        assert event_loop.run(asyncio.sleep(0, "done")) == "done"
