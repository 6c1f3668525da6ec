"""LiteLLM: any of a hundred providers, by `provider/model`."""

import json
import os
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import Field, HttpUrl, SecretStr

from llms.clients import event_loop
from llms.clients.chat_completions import decode, encode_structured_output
from llms.clients.errors import error_from_response, error_from_sdk, own_error, rate_limit_headers
from llms.clients.http import open_session
from llms.config import redaction
from llms.config.extras import import_optional
from llms.config.prices import MILLION, SAMPLE_TOKENS, Price
from llms.config.strict import StrictModel
from llms.errors import Fatal, LLMError, Transient
from llms.options import (
    ChatOptions,
    ExtraBody,
    LogitBias,
    MaxNewTokens,
    PositiveTopK,
    ReasoningEffort,
    ReturnLogprobs,
    TopLogprobs,
)
from llms.remote import RemoteLLM
from llms.structured.openai_strict import strict_schema
from llms.typing import ChatType, GenerateOutput, Usage

IMPORT_ENV = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or its import asks GitHub for prices
    "AIOHTTP_CONNECTOR_LIMIT": "1000000",  # admission is the engine's
    "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "1000000",
}
"""Environment variables that `litellm` reads once, on import."""

OTHER_PREFIXES = {
    "bedrock": ("AWS_",),
    "gemini": ("GOOGLE_",),
    "openrouter": ("OR_",),
    "sagemaker": ("AWS_",),
    "vertex_ai": ("GOOGLE_", "VERTEXAI_", "VERTEX_"),
    "watsonx": ("WML_", "WX_"),
}
"""How variables of a provider begin, where that is not its name."""

ERROR_CODES = {"ContextWindowExceededError": "context_length_exceeded"}
"""OpenAI's codes by class of error: LiteLLM drops the provider's own codes."""


class LiteLLM(RemoteLLM):
    """Models of any provider that LiteLLM knows, named like `groq/llama-3.3-70b-versatile`.

    Keys are read from the provider's own variables. Prefer a provider's own class where there is one: this takes
    seconds to import, and several times the CPU for each request.

    Example:
        ```python
        from llms import LiteLLM

        llm = LiteLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "LiteLLM"
    _documentation_url = HttpUrl("https://docs.litellm.ai/docs/providers")
    _logo_url = HttpUrl("https://avatars.githubusercontent.com/u/121462774")
    packages: ClassVar[tuple[str, ...]] = ("litellm",)
    _default_base_url: ClassVar[str | None] = None
    max_generations_per_request: ClassVar[int | None] = 1

    litellm_params: dict[str, Any] = Field(
        default_factory=dict,
        description="More of LiteLLM's arguments: `api_version`, `aws_region_name` …; what is secret belongs in the "
        "provider's variables.",
    )

    class Options(ChatOptions):
        """Runtime parameters."""

        max_new_tokens: MaxNewTokens = Field(
            default=None, serialization_alias="max_tokens", description="Tokens to generate at most."
        )
        top_k: PositiveTopK = None
        logprobs: ReturnLogprobs = None
        top_logprobs: TopLogprobs = None
        logit_bias: LogitBias = None
        reasoning_effort: ReasoningEffort = None
        thinking: dict[str, Any] | None = Field(
            default=None, description="More on that, as Anthropic says it: `type` and `budget_tokens`."
        )
        service_tier: str | None = Field(default=None, description="`auto`, `default`, `flex`, `priority` …")
        extra_body: ExtraBody = Field(default=None, description="More members for the request's body.")

    def prepare(self) -> None:
        """Check the package, the name of the provider, and its key where it has one.

        Raises:
            Fatal: Naming what is missing.
        """
        litellm = self._sdk()
        try:
            litellm.get_llm_provider(self.model, self.litellm_params.get("custom_llm_provider"), self.base_url)
        except litellm.BadRequestError:
            raise Fatal(
                f"`{self.model}` names no provider: write `provider/model`, as `groq/llama-3.3-70b-versatile`."
            ) from None
        missing = litellm.validate_environment(self.model)["missing_keys"]
        if missing and not self.api_key and all(name.endswith("_API_KEY") for name in missing):
            variables = " or ".join(f"`{name}`" for name in missing)
            raise Fatal(
                f"`{type(self).__name__}` has no API key for `{self.model}`: pass `api_key=` or set {variables}."
            )
        super().prepare()

    def cache_fields(self) -> dict[str, Any]:
        """Return the fields, with what LiteLLM takes from the provider's variables. Usually not overridden."""
        found = {name: SecretStr(os.environ[name]) for name in self._variables() if not redaction.is_secret_name(name)}
        return super().cache_fields() | ({"environment": found} if found else {})

    def cost(self, usage: Usage) -> float | None:
        """Return the dollars for this usage, at the price given or, at the provider's own address, LiteLLM's."""
        price = self.price or (None if self.base_url else _list_price(self._sdk(), self.model))
        return price.cost(usage) if price else None

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat with one generation: not every provider takes `n`."""
        return await event_loop.run_on_loop(self._complete(self._build_request(input, self.options(kwargs))))

    async def _complete(self, request: dict[str, Any]) -> GenerateOutput:
        litellm = event_loop.shared_client("litellm", self._sdk, lambda litellm: litellm.close_litellm_async_clients())
        session = event_loop.shared_client("aiohttp", open_session, lambda session: session.close())
        try:
            response = await litellm.acompletion(shared_session=session, **request)
        except litellm.UnsupportedParamsError as error:
            raise Fatal(f"`{self.model}` cannot be asked so: {error.message.partition(' To drop')[0]}") from None
        except Exception as error:
            raise self._error(error) from None
        try:
            reply = response.model_dump()
            for choice in reply["choices"]:  # which hold a refusal
                choice["message"] |= choice["message"].get("provider_specific_fields") or {}
            output = decode(reply)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise Transient(f"`{self._resolve_base_url()}` answered no completion: {error!r}", status=200) from None
        headers = response._hidden_params.get("additional_headers") or {}
        output.headers = rate_limit_headers(
            {name.removeprefix("llm_provider-"): f"{value}" for name, value in headers.items()}
        )
        return output

    def _build_request(self, chat: ChatType, options: StrictModel) -> dict[str, Any]:
        """Return LiteLLM's arguments."""
        request: dict[str, Any] = {
            "model": self.model,
            "messages": self._with_schema_prompt(chat),
            "api_base": self.base_url,
            "api_key": self._resolve_api_key() or None,
            "timeout": self.timeout,
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": False,  # what the provider lacks is refused by name, never left out
        }
        given = options.model_dump(by_alias=True, exclude_none=True)
        if pattern := self._regex():
            given["extra_body"] = encode_structured_output("regex", pattern) | given.get("extra_body", {})
        elif mode := self._resolve_structured_mode():
            request |= encode_structured_output(mode, self._json_schema(), strict_schema)
        return request | given | self.litellm_params

    def _regex(self) -> str | None:
        """Return the regular expression to match, if vLLM serves the model: no other takes one from LiteLLM."""
        provider = self.litellm_params.get("custom_llm_provider") or self.model.partition("/")[0]
        schema = self.structured_output and self.structured_output["schema"]
        return schema if isinstance(schema, str) and provider == "hosted_vllm" else None

    def _error(self, error: Exception) -> LLMError:
        """Return the error as ours; LiteLLM has attributes of its own for the headers and the body."""
        if ours := own_error(error):
            return ours
        headers, body = getattr(error, "litellm_response_headers", None), getattr(error, "body", None)
        status, message = getattr(error, "status_code", None), getattr(error, "message", None) or str(error)
        if not isinstance(status, int) or status == 200:  # an unreadable answer is not a refusal
            return error_from_sdk(error, self._resolve_base_url())
        failure = error_from_response(
            status, headers or {}, json.dumps(body) if isinstance(body, dict) else message, self._resolve_base_url()
        )
        failure.code = failure.code or ERROR_CODES.get(type(error).__name__)
        return failure

    def _variables(self) -> list[str]:
        """Return the variables of the environment that LiteLLM may read for the provider: keys, addresses, regions."""
        provider = self.litellm_params.get("custom_llm_provider") or self.model.partition("/")[0]
        prefixes = (f"{provider.upper().replace('-', '_')}_", *OTHER_PREFIXES.get(provider, ()))
        return sorted(name for name in os.environ if name.startswith(prefixes))

    def _named_urls(self) -> list[str]:
        names = ("api_base", "base_url")
        return super()._named_urls() + [self.litellm_params[name] for name in names if self.litellm_params.get(name)]

    def takes_key_from_environment(self) -> bool:
        """Return whether LiteLLM looks for a key, in many places. Usually not overridden."""
        return not self.api_key

    def _sdk(self) -> Any:
        for name, value in IMPORT_ENV.items():
            os.environ.setdefault(name, value)
        litellm = import_optional("litellm", self)
        litellm.suppress_debug_info = True  # it would print advice on every error
        return litellm

    def _resolve_base_url(self) -> str:
        """Return the base URL given, or the name of the provider, whose URL LiteLLM knows."""
        return super()._resolve_base_url() if self.base_url else self.model.partition("/")[0]

    def _resolve_api_key(self) -> str:
        """Return the key given; without one, LiteLLM reads the provider's variable."""
        return self._validate_api_key(self.api_key.get_secret_value()) if self.api_key else ""

    def _resolve_structured_mode(self) -> Any:
        """Return the mode in force: the strictest its provider has, if none is given."""
        if self._regex():
            return "regex"
        mode = super()._resolve_structured_mode()
        if mode != "json_schema" or self.structured_mode:
            return mode
        takes = self._sdk().get_supported_openai_params(self.model) or ()
        return mode if "response_format" in takes else "tool" if "tool_choice" in takes else "prompt"


@lru_cache
def _list_price(litellm: Any, model: str) -> Price | None:
    """Return the price in LiteLLM's own table, if any."""

    def dollars(**tokens: int) -> float:
        usage = {"prompt_tokens": 0, "completion_tokens": 0} | tokens
        return sum(litellm.cost_per_token(model=model, **usage)) * MILLION / SAMPLE_TOKENS

    try:
        return Price(
            input=dollars(prompt_tokens=SAMPLE_TOKENS),
            output=dollars(completion_tokens=SAMPLE_TOKENS),
            cache_read=dollars(prompt_tokens=SAMPLE_TOKENS, cache_read_input_tokens=SAMPLE_TOKENS),
        )
    except Exception:  # it raises whatever the provider's own price function does
        return None
