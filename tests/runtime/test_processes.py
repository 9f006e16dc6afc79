"""Processes of a live run: the ports chosen for them."""

from __future__ import annotations

import errno
import socket

import pytest

from runtime.processes import free_ports


def test_a_free_port_is_kept_for_the_server_that_asks_for_it() -> None:
    """Nobody binds it in passing meanwhile, nor does the kernel for others; a server that asks for it does."""
    ports = free_ports(3)
    assert len(set(ports)) == 3
    for port in ports:
        with socket.socket() as other, pytest.raises(OSError) as refused:
            other.bind(("127.0.0.1", port))
        assert refused.value.errno == errno.EADDRINUSE
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            server.listen()
            with socket.create_connection(("127.0.0.1", port)), server.accept()[0] as accepted:
                assert accepted.getsockname()[1] == port
