"""Several processes that need the same answers: each is paid for once."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.support.wire import Wire

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
REQUESTS, IN_FLIGHT = 100, 10
ASK = f"""
import sys
from llms import OpenAILLM

print("ready", flush=True)
sys.stdin.readline()
llm = OpenAILLM(model="m", base_url=sys.argv[1], api_key=sys.argv[2], max_concurrency={IN_FLIGHT})
chats = [[{{"role": "user", "content": f"question {{number}}"}}] for number in range({REQUESTS})]
print(*[output[0] for output in llm.generate_outputs(chats)], sep="\\n")
"""


def started(wire: Wire) -> "list[subprocess.Popen[str]]":
    """Four processes that ask at once."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, wire.url, f"{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def echoing(wire: Wire) -> None:
    wire.answer = lambda request: wire.Reply(wire.completion(f"{request.body['messages'][-1]['content']}!"), delay=0.3)


def asked(wire: Wire) -> "Counter[str]":
    return Counter(request.body["messages"][-1]["content"] for request in wire.requests)


def answers(process: "subprocess.Popen[str]") -> list[str]:
    output, _ = process.communicate()
    assert process.returncode == 0
    return output.split("\n")[:-1]


EVERY = [f"question {number}!" for number in range(REQUESTS)]


def test_requests_of_four_processes_are_sent_once(wire: Wire) -> None:
    echoing(wire)
    assert [answers(process) for process in started(wire)] == [EVERY] * 4
    assert len(wire.requests) == REQUESTS and len(asked(wire)) == REQUESTS


def test_when_the_one_that_asks_is_killed_another_goes_on(wire: Wire) -> None:
    echoing(wire)
    processes = started(wire)
    wait_until(lambda: len(wire.requests) > 3 * IN_FLIGHT)
    senders = {int(request.headers["authorization"].removeprefix("Bearer ")) for request in wire.requests}
    for number in senders:
        processes[number].kill()
    sending = [processes[number] for number in senders]
    rest = [process for process in processes if process not in sending]
    assert rest and [answers(process) for process in rest] == [EVERY] * len(rest)
    assert len(asked(wire)) == REQUESTS and len(wire.requests) <= REQUESTS + IN_FLIGHT * len(sending)
    for process in sending:
        process.communicate()
