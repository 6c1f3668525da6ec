"""llama.cpp's own server in this process, and the endpoints of it that no OpenAI client has."""

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import numpy as np

from llms.clients.errors import error_message
from llms.errors import Rejected
from llms.structured.gbnf import TokenPath
from llms.typing import ChatType, HiddenState


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        """Follow no redirect: the key and the chat would go along. Usually not called."""


@dataclass
class LlamaServer:
    """A running server. Its key keeps others on this machine out.

    Attributes:
        server: Of `xllamacpp`; it stops when it is garbage collected.
    """

    server: Any
    key: str
    _token_paths: dict[str, TokenPath] = field(default_factory=dict, init=False)

    @property
    def base_url(self) -> str:
        """The base URL of its OpenAI-compatible API."""
        return f"{self.server.listening_address}/v1"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {"Authorization": f"Bearer {self.key}"}

    def token_path(self, text: str) -> TokenPath:
        """Return the tokens by which the model writes a text, where nothing else is allowed and the longest come first.

        Computed once per text.
        """
        if text not in self._token_paths:
            self._token_paths[text] = self._find_token_path(text.encode())
        return self._token_paths[text]

    def hidden_state(self, chat: ChatType) -> HiddenState:
        """Compute the last hidden state of a chat under the model's template, `[num_tokens, hidden_size]`.

        Raises:
            Rejected: If the server refuses the chat.
        """
        prompt = self._post("/apply-template", {"messages": chat})["prompt"]
        (reply,) = self._post("/embeddings", {"content": prompt})
        return np.asarray(reply["embedding"], dtype=np.float32)

    def _find_token_path(self, text: bytes) -> TokenPath:
        known: dict[bytes, int] = {}
        position = num_tokens = 0
        while position < len(text):
            fitting = (spelling for spelling in known if text.startswith(spelling, position))
            longest = max(fitting, key=len, default=b"")
            if not longest and (new := self._tokenize(text[position:]).items() - known.items()):
                known |= dict(new)
                position = num_tokens = 0  # the new tokens may fit before, too
                continue
            position, num_tokens = position + max(1, len(longest)), num_tokens + 1
        return TokenPath(num_tokens, {token: len(spelling) for spelling, token in known.items()})

    def _tokenize(self, text: bytes) -> dict[bytes, int]:
        """Return the tokens of a text, by their bytes."""
        body = {"content": text.decode(errors="ignore"), "add_special": False, "with_pieces": True}
        pieces = [(each["piece"], each["id"]) for each in self._post("/tokenize", body)["tokens"]]
        return {piece.encode() if isinstance(piece, str) else bytes(piece): token for piece, token in pieces if piece}

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """Call an endpoint, without a proxy.

        Raises:
            Rejected: If the server refuses.
        """
        headers = {**self.headers, "Content-Type": "application/json"}
        request = Request(f"{self.server.listening_address}{path}", json.dumps(body).encode(), headers)
        try:
            with build_opener(ProxyHandler({}), _NoRedirects).open(request) as reply:
                return json.load(reply)
        except HTTPError as error:
            message, _ = error_message(error.read().decode(errors="replace"))
            raise Rejected(f"llama.cpp refuses this chat: {message}", status=error.code) from None
