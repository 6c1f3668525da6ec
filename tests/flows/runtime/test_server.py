"""The temporary server: where it listens."""

import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.runtime import server


@pytest.mark.skipif(sys.platform != "linux", reason="a port is kept for a server on Linux only")
def test_a_port_is_kept_for_the_server_that_will_listen_there():
    port, holder = server.reserve_port()
    with holder, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    port, holder = server.reserve_port()
    with holder, HTTPServer(("127.0.0.1", port), BaseHTTPRequestHandler), socket.create_connection(("127.0.0.1", port)):
        assert holder.getsockname()[1] == port
