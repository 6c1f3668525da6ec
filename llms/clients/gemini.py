"""Wire format of Gemini's `generateContent`."""

from base64 import b64decode
from collections.abc import Iterable
from mimetypes import guess_type
from typing import Any
from urllib.parse import urlsplit

from llms.clients.images import parse_data_url
from llms.errors import Rejected
from llms.typing import ChatType, FinishReason, GenerateOutput, Logprobs, Usage

FINISH_REASONS: dict[str, FinishReason | None] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "FINISH_REASON_UNSPECIFIED": None,
    **dict.fromkeys(("OTHER", "MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE"), "error"),
    **dict.fromkeys(("MISSING_THOUGHT_SIGNATURE", "TOO_MANY_TOOL_CALLS", "UNEXPECTED_TOOL_CALL"), "error"),
}
"""Gemini's finish reasons in our vocabulary; any other (`SAFETY`, `RECITATION`, `SPII` …) names a filter."""


def encode_format(response_format: dict[str, Any]) -> dict[str, Any]:
    """Encode a `response_format` of OpenAI's for Gemini; any other dictionary is Gemini's own."""
    match response_format:
        case {"type": "text"}:
            return {"response_mime_type": "text/plain"}
        case {"type": "json_object"}:
            return {"response_mime_type": "application/json"}
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return {"response_mime_type": "application/json", "response_json_schema": schema}
        case _:
            return response_format


def encode_chat(chat: ChatType) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Encode a chat as Gemini's contents, and the parts of its system messages."""
    contents: list[dict[str, Any]] = []
    system: list[dict[str, Any]] = []
    for message in chat:
        parts = _encode_content(message["content"])
        if message["role"] == "system":
            system += parts
        else:
            contents.append({"role": "model" if message["role"] == "assistant" else "user", "parts": parts})
    return contents, system


def _encode_content(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"text": content}] if isinstance(content, str) else [_encode_part(part) for part in content]


def _encode_part(part: dict[str, Any]) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"text": text}
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            if image := parse_data_url(url):
                return {"inline_data": {"mime_type": image[0], "data": b64decode(image[1])}}
            return {"file_data": {"file_uri": url, "mime_type": guess_type(urlsplit(url).path)[0]}}
        case _:
            raise Rejected(f"`VertexAILLM` takes texts and images, not `{part.get('type')}` parts.")


def decode(reply: dict[str, Any], num_generations: int) -> GenerateOutput:
    """Decode a response; a blocked prompt brings no candidates, so each text is `None` for the filter."""
    blocked = (reply.get("promptFeedback") or {}).get("blockReason")
    candidates = reply.get("candidates") or []
    if not candidates and not blocked:
        raise LookupError("no candidates")
    candidates = sorted(candidates, key=lambda candidate: candidate.get("index") or 0)
    candidates += [{"finishReason": "SAFETY" if blocked else "OTHER"}] * (num_generations - len(candidates))
    parts = [(candidate.get("content") or {}).get("parts") or [] for candidate in candidates]
    usage = reply.get("usageMetadata") or {}
    thoughts = usage.get("thoughtsTokenCount") or 0
    return GenerateOutput(
        [_text(part for part in each if not part.get("thought")) for each in parts],
        finish_reasons=[
            FINISH_REASONS.get(reason, "content_filter") if (reason := candidate.get("finishReason")) else None
            for candidate in candidates
        ],
        reasoning=[_text(part for part in each if part.get("thought")) for each in parts],
        logprobs=[_logprobs(candidate.get("logprobsResult") or {}) or None for candidate in candidates],
        usage=Usage(
            input_tokens=(usage.get("promptTokenCount") or 0) + (usage.get("toolUsePromptTokenCount") or 0),
            output_tokens=(usage.get("candidatesTokenCount") or 0) + thoughts,
            cache_read_input_tokens=usage.get("cachedContentTokenCount") or 0,
            reasoning_output_tokens=thoughts,
        ),
    )


def _text(parts: Iterable[dict[str, Any]]) -> str | None:
    return "".join(texts) if (texts := [part["text"] for part in parts if "text" in part]) else None


def _logprobs(result: dict[str, Any]) -> Logprobs:
    """Decode each position as its chosen token and the likeliest others."""
    chosen = result.get("chosenCandidates") or []
    top = [position.get("candidates") or [] for position in result.get("topCandidates") or [{}] * len(chosen)]
    return [
        [
            {"token": each["token"], "logprob": each["logProbability"]}
            for each in (token, *(other for other in others if other["token"] != token["token"]))
        ]
        for token, others in zip(chosen, top, strict=False)
    ]
