# ruff: noqa: E402
"""Language models as Prefect blocks: configuration that turns chats into texts."""

import os

os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect, Hugging Face and vLLM would send what is used

from llms.anthropic import AnthropicLLM
from llms.any_llm import AnyLLM
from llms.anyscale import AnyscaleLLM
from llms.azure import AzureOpenAILLM
from llms.base import LLM, AsyncLLM, StructuredLLM
from llms.cohere import CohereLLM
from llms.config.prices import Price
from llms.errors import BudgetExceeded, Fatal, LLMError, Rejected, Throttled, Transient
from llms.groq import GroqLLM
from llms.inference_endpoints import InferenceEndpointsLLM
from llms.litellm import LiteLLM
from llms.llama_server import LlamaServerLLM
from llms.llamacpp import LlamaCppLLM
from llms.mistral import MistralLLM
from llms.ollama import OllamaLLM
from llms.openai import OpenAILLM
from llms.remote import RemoteLLM
from llms.together import TogetherLLM
from llms.transformers import TransformersLLM
from llms.vertexai import VertexAILLM
from llms.vllm import vLLM

__all__ = [
    "LLM",
    "AnthropicLLM",
    "AnyLLM",
    "AnyscaleLLM",
    "AsyncLLM",
    "AzureOpenAILLM",
    "BudgetExceeded",
    "CohereLLM",
    "Fatal",
    "GroqLLM",
    "InferenceEndpointsLLM",
    "LLMError",
    "LiteLLM",
    "LlamaCppLLM",
    "LlamaServerLLM",
    "MistralLLM",
    "OllamaLLM",
    "OpenAILLM",
    "Price",
    "Rejected",
    "RemoteLLM",
    "StructuredLLM",
    "Throttled",
    "TogetherLLM",
    "TransformersLLM",
    "Transient",
    "VertexAILLM",
    "vLLM",
]
