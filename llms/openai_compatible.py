"""Base of models whose API has the shape of OpenAI's chat completions."""

from abc import ABC
from typing import Any, ClassVar

from pydantic import BaseModel, Field, SecretStr

from llms.clients import chat_completions
from llms.remote import RemoteLLM
from llms.structured.openai_strict import strict_schema
from llms.typing import ChatType, GenerateOutput


class ChatCompletionsLLM(RemoteLLM, ABC):
    """A model whose API has the shape of OpenAI's chat completions. Subclasses state facts and their options."""

    default_headers: dict[str, SecretStr] | None = Field(
        default=None, description="More headers for every request, such as those a gateway wants."
    )

    _path: ClassVar[str] = ""
    """Path between the provider's base URL and `/chat/completions`; a given `base_url` may end with it or not."""
    _supports_strict_schema: ClassVar[bool] = False
    """Whether the API can enforce a schema strictly."""

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat `num_generations` times, with one request. Usually not overridden."""
        body = self._body(input, num_generations, self.options(kwargs))
        return await chat_completions.complete(self._endpoint(), await self._headers(), body, self.timeout)

    def _resolve_base_url(self) -> str:
        return super()._resolve_base_url().removesuffix(self._path)

    def _endpoint(self) -> str:
        """Return the URL requests are sent to. Override this in subclasses whose URLs have another shape."""
        return f"{self._resolve_base_url()}{self._path}/chat/completions"

    async def _headers(self) -> dict[str, str]:
        """Return the headers of a request. Override this in subclasses that send others besides the key."""
        more = {name: value.get_secret_value() for name, value in (self.default_headers or {}).items()}
        return await self._authorization() | more

    async def _authorization(self) -> dict[str, str]:
        """Return the headers with the key. Override this in subclasses that take no bearer token."""
        return {"Authorization": f"Bearer {self._resolve_api_key()}"}

    def _body(self, chat: ChatType, num_generations: int, options: BaseModel) -> dict[str, Any]:
        """Return the body of a request. Override this in subclasses whose API wants other members."""
        structured: dict[str, Any] = {}
        if (mode := self._resolve_structured_mode()) and self.structured_output:
            narrow = strict_schema if self._supports_strict_schema else None
            structured = chat_completions.encode_structured_output(mode, self.structured_output["schema"], narrow)
        return chat_completions.encode(self.model, self._with_schema_prompt(chat), num_generations, options, structured)
