"""A cable between a worker and a server, which a test can pull out."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Cable:
    """Hands on every byte, until it is cut: then none, and nobody is told, as in a network that was parted.

    What was opened before the cut stays dead after it, since the other side may have given it up.

    Args:
        port: The server's.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._whole = threading.Event()
        self._whole.set()
        self._open: list[socket.socket] = []
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """No byte goes through meanwhile."""
        self._whole.clear()
        opened, self._open = self._open, []
        try:
            yield
        finally:
            self._whole.set()
            for one in opened:
                _hang_up(one)

    def close(self) -> None:
        self._door.close()
        for one in self._open:
            _hang_up(one)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._whole.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._server))
        except OSError:
            _hang_up(client)
            return
        self._open += [client, server]
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=self._hand_on, args=(source, target), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                while not self._whole.is_set():
                    if source not in self._open:
                        return
                    time.sleep(0.01)
                if source not in self._open:
                    return  # it was sent before the cut, and never arrives
                target.sendall(part)
        _hang_up(source)
        _hang_up(target)


def _hang_up(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
