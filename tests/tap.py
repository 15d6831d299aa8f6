"""A tap on the way to RabbitMQ, which counts what the clients say."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from contextlib import suppress

ACK, REJECT, PUBLISH = (60, 80), (60, 90), (60, 40)
GREETING = len(b"AMQP\x00\x00\x09\x01")


class Tap:
    """Hands on every byte, and counts the AMQP methods that clients send; publications by their routing key, too.

    Args:
        port: The broker's.
    """

    def __init__(self, port: int) -> None:
        self.sent: Counter[tuple[int, int]] = Counter()
        self.published: Counter[str] = Counter()
        self._port = port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._open, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def _open(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._door.accept()
                broker = socket.create_connection(("127.0.0.1", self._port))
                for source, target, counts in ((client, broker, True), (broker, client, False)):
                    threading.Thread(target=self._hand_on, args=(source, target, counts), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        unread = b""
        greeted = False
        with suppress(OSError):
            while part := source.recv(65536):
                target.sendall(part)
                if counts:
                    unread += part
                    if not greeted and len(unread) >= GREETING:
                        unread, greeted = unread[GREETING:], True
                    if greeted:
                        unread = self._count(unread)
        for one in (source, target):
            one.close()

    def _count(self, unread: bytes) -> bytes:
        """Count the whole frames, and return the rest."""
        while len(unread) >= 7:
            kind, _, size = struct.unpack(">BHI", unread[:7])
            if len(unread) < size + 8:
                break
            frame, unread = unread[7 : 7 + size], unread[8 + size :]
            if kind == 1:
                method = struct.unpack(">HH", frame[:4])
                self.sent[method] += 1
                if method == PUBLISH:
                    exchange = frame[6]
                    key = frame[7 + exchange :]
                    self.published[key[1 : 1 + key[0]].decode()] += 1
        return unread
