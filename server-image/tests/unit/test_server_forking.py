"""A forked engine core keeps nothing of its parent's network, and everything else."""

import os
import socket

from tuneloop_server import forking


def test_a_connection_ends_for_its_client_although_a_fork_lives_on() -> None:
    local, ours = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=30)
        connection, _ = listener.accept()
        child = os.fork()
        if child == 0:
            _live_until_told(local)
        local.close()
        with client, ours:
            ours.settimeout(30)
            assert ours.recv(5) == b"ready"  # the child has let go, and kept the pair
            connection.close()
            assert client.recv(1) == b""
            ours.sendall(b"end")
    assert os.waitpid(child, 0)[1] == 0


def _live_until_told(pair: socket.socket) -> None:
    """The child: let go, say so, wait for a word."""
    forking._let_go()
    pair.sendall(b"ready")
    pair.recv(1)
    os._exit(0)
