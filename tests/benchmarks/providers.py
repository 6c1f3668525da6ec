"""CPU per request of every provider at 500 in flight, beside its own SDK as it comes, in one run.

    python -m tests.benchmarks.providers
    python -m tests.benchmarks.providers OpenAILLM GroqLLM --requests 5000

The server is in a process of its own, answers at once in the format of each API, and counts what is in flight. Ours is
all that stands behind `generate`: admission, retries, the store. The SDK is its default client and a semaphore, nothing
more; both are asked the same chats, each once before it is measured.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

from aiohttp import web

from llms.typing import ChatType
from tests.support.api_profiles import KEY, Way, installed, remote, ways

IN_FLIGHT = 500
PROMPT = "What does it take to answer a question? " * 22
ANSWER = "It takes a question, and somebody who knows. " * 27

Ask = Callable[[ChatType], Awaitable[Any]]


def openai(url: str) -> Ask:
    """`openai`, for all who have no SDK of their own too."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY)
    return lambda chat: client.chat.completions.create(model="m", messages=chat)  # type: ignore[arg-type]


def azure(url: str) -> Ask:
    """`openai`"""
    from openai import AsyncAzureOpenAI

    client = AsyncAzureOpenAI(azure_endpoint=url, api_key=KEY, api_version="2024-10-21")
    return lambda chat: client.chat.completions.create(model="m", messages=chat)  # type: ignore[arg-type]


def groq(url: str) -> Ask:
    """`groq`"""
    from groq import AsyncGroq

    client = AsyncGroq(base_url=url, api_key=KEY)
    return lambda chat: client.chat.completions.create(model="m", messages=chat)  # type: ignore[arg-type]


def together(url: str) -> Ask:
    """`together`"""
    from together import AsyncTogether

    client = AsyncTogether(base_url=url, api_key=KEY)
    return lambda chat: client.chat.completions.create(model="m", messages=chat)  # type: ignore[arg-type]


def mistral(url: str) -> Ask:
    """`mistralai`"""
    from mistralai.client import Mistral

    client = Mistral(server_url=url, api_key=KEY)
    return lambda chat: client.chat.complete_async(model="m", messages=chat)  # type: ignore[arg-type]


def hub(url: str) -> Ask:
    """`huggingface_hub`"""
    from huggingface_hub import AsyncInferenceClient

    client = AsyncInferenceClient(base_url=f"{url}/v1", api_key=KEY)
    return lambda chat: client.chat_completion(chat, model="m")  # type: ignore[arg-type]


def anthropic(url: str) -> Ask:
    """`anthropic`"""
    from anthropic import AsyncAnthropic

    client = AsyncAnthropic(base_url=url, api_key=KEY)
    return lambda chat: client.messages.create(model="m", max_tokens=4096, messages=chat)  # type: ignore[arg-type]


def cohere(url: str) -> Ask:
    """`cohere`"""
    from cohere import AsyncClientV2

    client = AsyncClientV2(KEY, base_url=url)
    return lambda chat: client.chat(model="m", messages=chat)  # type: ignore[arg-type]


def ollama(url: str) -> Ask:
    """`ollama`"""
    from ollama import AsyncClient

    client = AsyncClient(host=url)
    return lambda chat: client.chat(model="m", messages=chat)


def vertexai(url: str) -> Ask:
    """`google-genai`"""
    from google import genai

    client = genai.Client(enterprise=True, api_key=KEY, http_options={"base_url": url})
    return lambda chat: client.aio.models.generate_content(model="m", contents=str(chat[-1]["content"]))


def litellm(url: str) -> Ask:
    """`litellm`"""
    import litellm

    return lambda chat: litellm.acompletion(model="openai/m", messages=chat, api_base=f"{url}/v1", api_key=KEY)


SDKS: dict[str, Callable[[str], Ask]] = {
    "AnthropicLLM": anthropic,
    "AzureOpenAILLM": azure,
    "CohereLLM": cohere,
    "GroqLLM": groq,
    "InferenceEndpointsLLM": hub,
    "LiteLLM": litellm,
    "MistralLLM": mistral,
    "OllamaLLM": ollama,
    "TogetherLLM": together,
    "VertexAILLM": vertexai,
}
"""Whose SDK is not OpenAI's."""


def chats(count: int) -> list[ChatType]:
    """So many chats, each its own."""
    return [[{"role": "user", "content": f"{PROMPT}{number}"}] for number in range(count)]


def bare(ask: Callable[[str], Ask], url: str, count: int) -> float:
    """Seconds of CPU that the SDK takes for so many requests."""

    async def measure() -> float:
        one, places = ask(url), asyncio.Semaphore(IN_FLIGHT)

        async def placed(chat: ChatType) -> None:
            async with places:
                await one(chat)

        await asyncio.gather(*map(placed, chats(IN_FLIGHT)))
        started = time.process_time()
        await asyncio.gather(*map(placed, chats(count)))
        return time.process_time() - started

    return asyncio.run(measure())


def ours(way: Way, url: str, count: int) -> float:
    """Seconds of CPU that we take for so many requests."""
    fields = way.fields(url)
    fields["model"] = f"{fields.get('model', 'm')}-{way.cls.__name__}"  # a limit of its own
    llm = way.cls(**fields, max_concurrency=IN_FLIGHT)
    llm.generate(chats(IN_FLIGHT))
    started = time.process_time()
    outputs = llm.generate(chats(count))
    seconds = time.process_time() - started
    assert all(output == [ANSWER] for output in outputs), outputs[0].error
    return seconds


class Server:
    """Answers at once in the format of every API, in a process of its own."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._opener = build_opener(ProxyHandler({}))

    def peak(self) -> int:
        """How many requests were in flight at most since this was asked last."""
        with self._opener.open(f"{self.url}/peak") as reply:
            return json.load(reply)


@contextmanager
def running() -> Iterator[Server]:
    """A server, gone with this process."""
    command = [sys.executable, "-m", "tests.benchmarks.providers", "--serve"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        assert server.stdout
        try:
            yield Server(int(server.stdout.readline()))
        finally:
            server.terminate()


async def serve() -> None:
    """Serve until whoever started it ends; the port is the first line that is printed."""
    replies = {way.profile.path: json.dumps(way.profile.reply(ANSWER)).encode() for way in ways(*remote())}
    ends = sorted(replies, key=len, reverse=True)
    in_flight = peak = 0

    async def post(request: web.Request) -> web.Response:
        nonlocal in_flight, peak
        in_flight += 1
        peak = max(peak, in_flight)
        try:
            await request.read()
            await asyncio.sleep(0.05)  # long enough for all others to be sent
            body = replies[next(end for end in ends if request.path.endswith(end))]
            return web.Response(body=body, content_type="application/json")
        finally:
            in_flight -= 1

    async def said(_: web.Request) -> web.Response:
        nonlocal peak
        was, peak = peak, 0
        return web.json_response(was)

    application = web.Application(client_max_size=1 << 24)
    application.add_routes([web.get("/peak", said), web.post("/{path:.*}", post)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(runner.addresses[0][1], flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    await asyncio.Event().wait()


def main() -> None:
    """Measure those that were named, or all there are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="classes, such as `OpenAILLM`; all that are installed when none is")
    parser.add_argument("--requests", type=int, default=3_000, help="requests each is measured with")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
        return
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # nobody closes the clients of the SDKs
    classes = [cls for cls in remote() if not given.names or cls.__name__ in given.names]
    print("| | ms of CPU a request | its SDK as it comes | in flight |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, running() as server:
        os.environ["DISTILFLOW_HOME"] = home
        for way in (way for cls in classes for way in ways(cls)[:1] if installed(way.profile)):
            sdk = SDKS.get(way.cls.__name__, openai)
            here, there = measured(way, sdk, server, given.requests)
            name = (sdk.__doc__ or "").partition(",")[0]
            print(f"| `{way}` | {here[0]:.2f} | {there[0]:.2f} ({name}) | {here[1]}, {there[1]} |", flush=True)


def measured(
    way: Way, sdk: Callable[[str], Ask], server: Server, count: int
) -> tuple[tuple[float, int], tuple[float, int]]:
    """Milliseconds of CPU a request and the most that were in flight: ours, and the SDK's."""
    took = []
    for seconds in (lambda: ours(way, server.url, count), lambda: bare(sdk, server.url, count)):
        gc.collect()  # clients that were let go close their connections now, not while others are asked
        server.peak()
        took.append((1000 * seconds() / count, server.peak()))
    return took[0], took[1]


if __name__ == "__main__":
    main()
