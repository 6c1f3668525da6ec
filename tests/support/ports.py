"""Ports for servers that tests start in processes of their own."""

import socket

from flows.runtime import server

_holders: list[socket.socket] = []


def reserve_port() -> int:
    """Return a free port that no other test is given, in whichever process, while this one lives."""
    port, holder = server.reserve_port()
    _holders.append(holder)
    return port
