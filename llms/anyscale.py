"""Anyscale: a service of one's own, with vLLM behind it."""

from pydantic import HttpUrl

from llms.errors import Fatal
from llms.openai_compatible import ChatCompletionsLLM
from llms.options import OpenModelOptions, ReturnLogprobs, TopLogprobs

CLOSED_HINT = "Anyscale closed its public endpoints: the address is that of a service of your own."


class AnyscaleLLM(ChatCompletionsLLM):
    """Models that you serve on Anyscale, with Ray Serve and vLLM; or on a vLLM server anywhere.

    The `base_url` is the service's; the `api_key` is its token, or any text where it asks for none.

    Example:
        ```python
        from llms import AnyscaleLLM

        llm = AnyscaleLLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Anyscale LLM"
    _documentation_url = HttpUrl("https://docs.anyscale.com/llm/serving")
    _logo_url = HttpUrl("https://www.anyscale.com/favicon.ico")
    _api_key_env = "ANYSCALE_API_KEY"
    _base_url_env = "ANYSCALE_BASE_URL"
    _default_base_url = None
    _path = "/v1"
    _supports_regex = True

    class Options(OpenModelOptions):
        """Runtime parameters."""

        logprobs: ReturnLogprobs = None
        top_logprobs: TopLogprobs = None

    def _resolve_base_url(self) -> str:
        try:
            url = super()._resolve_base_url()
        except Fatal as error:
            raise Fatal(f"{error.message} {CLOSED_HINT}") from None
        if "api.endpoints.anyscale.com" in url:
            raise Fatal(f"`{url}` answers no more. {CLOSED_HINT}")
        return url
