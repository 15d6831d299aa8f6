"""Servers that a broker's URL may meet by mistake: one that says nothing, one of the web; and Redis, set up in other ways."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from .servers import RedisServer

TLS = Path(__file__).resolve().parent / "tls"


@contextmanager
def mute() -> Iterator[int]:
    """A port that takes connections, and never says a word."""
    door = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def take() -> None:
        with contextlib.suppress(OSError):
            while True:
                kept.append(door.accept()[0])

    threading.Thread(target=take, daemon=True).start()
    try:
        yield int(door.getsockname()[1])
    finally:
        for one in [door, *kept]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def hole() -> Iterator[int]:
    """A port that lets nobody in, and refuses nobody: as behind a firewall that drops what comes."""
    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    door.listen(0)
    port = int(door.getsockname()[1])
    callers: list[socket.socket] = []
    for _ in range(4):  # until the queue of those who wait to be let in is full
        caller = socket.socket()
        caller.setblocking(False)
        caller.connect_ex(("127.0.0.1", port))
        callers.append(caller)
    try:
        yield port
    finally:
        for one in [*callers, door]:
            one.close()


@contextmanager
def babble(said: bytes) -> Iterator[int]:
    """A port at which these words are said to whoever comes, and nothing after."""
    door = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def say() -> None:
        with contextlib.suppress(OSError):
            while True:
                caller = door.accept()[0]
                kept.append(caller)
                caller.sendall(said)

    threading.Thread(target=say, daemon=True).start()
    try:
        yield int(door.getsockname()[1])
    finally:
        with contextlib.suppress(OSError):
            door.shutdown(socket.SHUT_RDWR)
        for one in [door, *kept]:
            one.close()


@contextmanager
def web() -> Iterator[int]:
    """A server of the web, as RabbitMQ's management page is one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[assignment]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


class OtherRedis(RedisServer):
    """A Redis that is started with these words more, which win over the usual ones.

    Args:
        words: As on its command line.
        password: The one that they ask for.
        tls: Whether it speaks TLS alone.
    """

    databases = 16

    def __init__(self, *words: str, password: str | None = None, tls: bool = False) -> None:
        super().__init__()
        self._words, self._password, self._tls = words, password, tls

    def command(self) -> list[str]:
        words = [*super().command(), *self._words]
        if self._password:
            words += ["--requirepass", self._password]
        if self._tls:
            words += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            for option, file in (
                ("--tls-cert-file", "server.pem"),
                ("--tls-key-file", "server.key"),
                ("--tls-ca-cert-file", "ca.pem"),
            ):
                words += [option, str(TLS / file)]
        return words

    def client(self) -> redis.Redis:
        tls = {"ssl": True, "ssl_ca_certs": str(TLS / "ca.pem"), "ssl_check_hostname": False} if self._tls else {}
        return redis.Redis(port=self.port, password=self._password, socket_timeout=1, **tls)  # type: ignore[arg-type]

    def answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except (redis.RedisError, OSError):
            return False


@contextmanager
def other_redis(*words: str, password: str | None = None, tls: bool = False) -> Iterator[OtherRedis]:
    server = OtherRedis(*words, password=password, tls=tls)
    try:
        server.start()
        yield server
    finally:
        server.close()
