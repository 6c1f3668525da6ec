"""Language models as Prefect blocks: configuration that turns chats into texts."""

from llms.base import LLM, AsyncLLM, StructuredLLM
from llms.errors import Fatal, LLMError, Rejected, Throttled, Transient
from llms.llama_server import LlamaServerLLM
from llms.llamacpp import LlamaCppLLM
from llms.models import AnyLLM
from llms.openai import OpenAILLM
from llms.remote import RemoteLLM

__all__ = [
    "LLM",
    "AnyLLM",
    "AsyncLLM",
    "Fatal",
    "LLMError",
    "LlamaCppLLM",
    "LlamaServerLLM",
    "OpenAILLM",
    "Rejected",
    "RemoteLLM",
    "StructuredLLM",
    "Throttled",
    "Transient",
]
