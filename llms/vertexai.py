"""Gemini on Google Cloud's Vertex AI."""

import json
import os
import re
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import Field, HttpUrl, SecretStr

from llms.clients import event_loop, gemini
from llms.clients.chat_completions import encode_structured_output
from llms.clients.errors import error_from_sdk
from llms.clients.http import environment_proxy, open_session
from llms.config.extras import import_optional
from llms.config.prices import list_price
from llms.config.strict import StrictModel
from llms.errors import Fatal, Transient
from llms.options import (
    ChatOptions,
    ExtraBody,
    MaxNewTokens,
    PositiveTopK,
    ReasoningEffort,
    ReturnLogprobs,
    TopLogprobs,
)
from llms.remote import RemoteLLM, StructuredMode
from llms.typing import ChatType, GenerateOutput, Usage

LOGIN_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)


class VertexAILLM(RemoteLLM):
    """Gemini models on Google Cloud's Vertex AI.

    It logs in with the application-default credentials (`gcloud auth application-default login`, a service account's),
    or with `credentials`, or with the `api_key` of express mode, which needs no project.

    Example:
        ```python
        from llms import VertexAILLM

        llm = VertexAILLM.load("BLOCK_NAME")
        llm.generate([[{"role": "user", "content": "What's the capital of Spain?"}]])
        ```
    """

    _block_type_name = "Vertex AI LLM"
    _documentation_url = HttpUrl("https://docs.cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference")
    _logo_url = HttpUrl("https://cdn.simpleicons.org/googlecloud")
    packages: ClassVar[tuple[str, ...]] = ("google-genai",)
    _provider: ClassVar[str | None] = "google"
    _api_key_env: ClassVar[str] = "GOOGLE_API_KEY"
    _base_url_env: ClassVar[str | None] = "GOOGLE_VERTEX_BASE_URL"
    _default_base_url: ClassVar[str | None] = "https://aiplatform.googleapis.com"
    _structured_modes: ClassVar[tuple[StructuredMode, ...]] = ("json_schema", "json_object", "prompt")
    max_generations_per_request: ClassVar[int | None] = 8

    project: str | None = Field(
        default=None, description="Google Cloud project; `GOOGLE_CLOUD_PROJECT` or the credentials' own when empty."
    )
    location: str | None = Field(
        default=None, description="Region that computes, as `europe-west4`; `GOOGLE_CLOUD_LOCATION`, or `global`."
    )
    credentials: SecretStr | None = Field(
        default=None,
        description="An access token, or the JSON of a service account's key; the application-default when empty.",
    )

    class Options(ChatOptions):
        """Runtime parameters."""

        max_new_tokens: MaxNewTokens = Field(
            default=None,
            serialization_alias="max_output_tokens",
            description="Tokens to generate at most, thoughts included.",
        )
        top_k: PositiveTopK = None
        logprobs: ReturnLogprobs = Field(
            default=None, serialization_alias="response_logprobs", description="Whether to say how likely tokens were."
        )
        top_logprobs: TopLogprobs = Field(default=None, serialization_alias="logprobs")
        reasoning_effort: ReasoningEffort = Field(
            default=None, description="How much Gemini 3 and later think first: `minimal`, `low`, `medium`, `high` …"
        )
        thinking: dict[str, Any] | None = Field(
            default=None, description="More on that: `thinking_budget` (tokens, for Gemini 2.5), `include_thoughts`."
        )
        safety_settings: dict[str, str] | None = Field(
            default=None, description='Thresholds of the filters: `{"HARM_CATEGORY_HARASSMENT": "BLOCK_NONE"}` …'
        )
        labels: dict[str, str] | None = Field(default=None, description="What the bill names the request by.")
        service_tier: str | None = Field(default=None, description="`standard`, `flex` or `priority`.")
        extra_body: ExtraBody = Field(default=None, description="More members for the request's body.")

    def prepare(self) -> None:
        """Check the packages, the credentials and the project.

        Raises:
            Fatal: Naming what is missing.
        """
        import_optional("google.genai", self)
        self._client_credentials()
        super().prepare()

    def cost(self, usage: Usage) -> float | None:
        """Return the dollars for this usage, at the price given or, at Google's own addresses, its list price."""
        google = self._resolve_base_url().endswith(".googleapis.com")
        price = self.price or (list_price("google", self.model) if google else None)
        return price.cost(usage) if price else None

    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        """Answer one chat `num_generations` times, with one request."""
        request = self._build_request(input, num_generations, self.options(kwargs))
        return await event_loop.run_on_loop(self._complete(request, num_generations))

    async def _complete(self, request: dict[str, Any], num_generations: int) -> GenerateOutput:
        url = self._resolve_base_url()
        key = ("vertexai", url, self._resolve_api_key(), self._project(), self._location())
        client = event_loop.shared_client(key, self._client, lambda client: client.aio.aclose())
        auth = import_optional("google.auth.exceptions", self)
        try:
            response = await client.aio.models.generate_content(**request)
        except auth.GoogleAuthError as error:
            if isinstance(error, auth.TransportError) or error.retryable:
                raise Transient(f"Google's login: {type(error).__name__}: {error}") from None
            raise Fatal(f"Google's login refuses the credentials: {error}") from None
        except Exception as error:
            raise error_from_sdk(error, url) from None
        text = response.sdk_http_response.body or ""
        try:
            return gemini.decode(json.loads(text), num_generations)
        except (AttributeError, LookupError, TypeError, ValueError):
            raise Transient(f"`{url}` answered no completion: {text[:500] or 'nothing'}", status=200) from None

    def _client(self) -> Any:
        url = self._resolve_base_url()
        # Ours, one for all who ask this address: the SDK's own would send it a login from `~/.netrc`.
        session = event_loop.shared_client(
            ("vertexai", url), lambda: open_session(proxy=environment_proxy(url)), lambda session: session.close()
        )
        # Without `retry_options`, it sleeps and sends a request again after a network error.
        http = {"base_url": url, "aiohttp_client": session, "retry_options": {"attempts": 1}}
        genai = import_optional("google.genai", self)
        return genai.Client(enterprise=True, **self._client_credentials(), http_options=http)

    def _client_credentials(self) -> dict[str, Any]:
        """Return the SDK's arguments: the key of express mode, or credentials and a project."""
        if key := self._express_key():
            return {"api_key": key} | ({"project": self.project, "location": self._location()} if self.project else {})
        credentials, project = self._credentials()
        if not (project := self._project() or project):
            raise Fatal(f"`{type(self).__name__}` has no project: pass `project=` or set `GOOGLE_CLOUD_PROJECT`.")
        return {"credentials": credentials, "project": project, "location": self._location()}

    def _credentials(self) -> tuple[Any, str | None]:
        """Return the credentials in force, and the project they belong to."""
        auth = import_optional("google.auth", self)
        if not self.credentials:
            try:
                return _default_credentials(auth, os.getenv("GOOGLE_APPLICATION_CREDENTIALS"))
            except auth.exceptions.DefaultCredentialsError:
                raise Fatal(
                    f"`{type(self).__name__}` has no credentials: run `gcloud auth application-default login`, set "
                    f"`GOOGLE_APPLICATION_CREDENTIALS` or pass `credentials=`; in express mode, pass `api_key=` or set "
                    f"`{self._api_key_env}`."
                ) from None
        secret = self.credentials.get_secret_value()
        if not secret.lstrip().startswith("{"):
            token = self._validate_api_key(secret)
            return import_optional("google.oauth2.credentials", self).Credentials(token=token), None
        try:
            return auth.load_credentials_from_dict(json.loads(secret), scopes=LOGIN_SCOPES)
        except (ValueError, auth.exceptions.GoogleAuthError):  # whose messages quote the secret
            raise Fatal("`credentials` are neither an access token nor the JSON of a key file.") from None

    def cache_fields(self) -> dict[str, Any]:
        """Return the fields, with the project and the region in use. Usually not overridden."""
        project, quota = self._project(), os.getenv("GOOGLE_CLOUD_QUOTA_PROJECT")
        if (
            not project
            and not self._express_key()
            and (self.credentials or os.getenv("GOOGLE_APPLICATION_CREDENTIALS"))
        ):
            project = self._credentials()[1]
        region = {"project": project, "location": self.location or os.getenv("GOOGLE_CLOUD_LOCATION") or None}
        return super().cache_fields() | region | ({"quota_project": quota} if quota else {})

    def _express_key(self) -> str | None:
        """Return the key of express mode, if in force: arguments take precedence over the environment."""
        key = os.getenv(self._api_key_env) if not (self.credentials or self._project()) else None
        key = self.api_key.get_secret_value() if self.api_key else key
        return key and self._validate_api_key(key)

    def _resolve_api_key(self) -> str:
        """Return the secret in force; the application-default credentials are not ours to read."""
        return self._express_key() or (self.credentials.get_secret_value() if self.credentials else "")

    def takes_key_from_environment(self) -> bool:
        """Return whether the environment's key or credentials are used. Usually not overridden."""
        return not (self.api_key or self.credentials)

    def _project(self) -> str | None:
        return self.project or os.getenv("GOOGLE_CLOUD_PROJECT")

    def _location(self) -> str:
        return self.location or os.getenv("GOOGLE_CLOUD_LOCATION") or "global"

    def _resolve_base_url(self) -> str:
        """Return the base URL in force; that of the location if none is given."""
        location, url = self._location(), super()._resolve_base_url()
        if not re.fullmatch("[a-z0-9-]+", location):
            raise Fatal(f"`{location}` is no region: `location` is one, such as `europe-west4`.")
        if url != self._default_base_url or location == "global" or (self._express_key() and not self.project):
            return url
        if location in ("us", "eu"):
            return f"https://aiplatform.{location}.rep.googleapis.com"
        return f"https://{location}-aiplatform.googleapis.com"

    def _build_request(self, chat: ChatType, num_generations: int, options: StrictModel) -> dict[str, Any]:
        """Return the SDK's arguments."""
        config: dict[str, Any] = {
            "automatic_continuation": False,  # each request is one request
            "automatic_function_calling": {"disable": True},
            "should_return_http_response": True,  # the SDK's decoding of it costs more than sending it
        }
        contents, system = gemini.encode_chat(self._with_schema_prompt(chat))
        if system:
            config["system_instruction"] = {"parts": system}
        if num_generations > 1:
            config["candidate_count"] = num_generations
        given = encode_structured_output(self._resolve_structured_mode() or "", self._json_schema())
        given |= options.model_dump(by_alias=True, exclude_none=True)
        config |= gemini.encode_format(given.pop("response_format", {}))
        if stop := given.pop("stop", None):
            config["stop_sequences"] = [stop] if isinstance(stop, str) else stop
        level = {"thinking_level": given.pop("reasoning_effort").upper()} if "reasoning_effort" in given else {}
        if thinking := level | given.pop("thinking", {}):
            config["thinking_config"] = thinking
        if filters := given.pop("safety_settings", None):
            config["safety_settings"] = [
                {"category": name, "threshold": threshold} for name, threshold in filters.items()
            ]
        config["http_options"] = {"timeout": int(self.timeout * 1000)}
        if extra_body := given.pop("extra_body", None):
            config["http_options"]["extra_body"] = extra_body
        return {"model": self.model, "contents": contents, "config": config | given}


@lru_cache
def _default_credentials(auth: Any, path: str | None) -> tuple[Any, str | None]:
    """Return the credentials of this machine; the search for them may use the network."""
    return auth.default(scopes=LOGIN_SCOPES)
