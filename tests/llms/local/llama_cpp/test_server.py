"""The endpoints of llama.cpp's server that are asked without aiohttp."""

from types import SimpleNamespace

import pytest

from llms import Rejected
from llms.local.llama_cpp.server import LlamaServer
from tests.support.wire import Wire, listening


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(wire: Wire, status: int) -> None:
    server = LlamaServer(SimpleNamespace(listening_address=wire.url), "key")
    with listening() as other:
        wire.answer = lambda request: wire.Reply({}, status, {"Location": f"{other.url}/apply-template"})
        with pytest.raises(Rejected):
            server.hidden_state([{"role": "user", "content": "Hello"}])
        assert len(wire.requests) == 1 and not other.requests
