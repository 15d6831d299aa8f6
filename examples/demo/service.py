"""A payment service in a process of its own, with test cards that bring out the worst in it.

It honours ``Idempotency-Key``: the first request of a key charges, every later one gets the same receipt. A refusal is not
remembered: a declined card may be tried again. It writes down every request, so that one can ask afterwards what came when.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What each card does. Any other one is charged.
DECLINED = "card_declined"  # 402, until the bank unblocks it
SLOW = "card_slow"  # the first two requests get no answer and are not charged
FORGETFUL = "card_forgetful"  # the first request is charged, and its answer never comes
TROUBLE = "card_trouble"  # the first two requests get a 503

#: How long a request is left hanging: longer than any client waits.
STALL = 1.5


@dataclass
class Request:
    """One request for a charge.

    Attributes:
        at: When it came, in seconds since the epoch.
        order_id: The order it asked to charge.
        key: Its ``Idempotency-Key``.
        task_id: The task that asked.
        attempt: The task's attempt, the first being 1.
        pid: The process that asked.
        answer: ``charged``, ``repeated``, ``declined``, ``trouble`` or ``stalled``; ``charged, unheard`` when the answer
            was left hanging; empty while there is none.
        running: Whether it is still open.
    """

    at: float
    order_id: str
    key: str
    task_id: str
    attempt: int
    pid: int
    answer: str = ""
    running: bool = True


class Books:
    """What was asked and what was charged. All of it behind one lock: two requests of a key may come at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._came: dict[str, int] = {}
        self._receipts: dict[str, str] = {}
        self._charged: dict[str, int] = {}
        self.unblocked = False

    def came(self, request: Request) -> int:
        """Write a request down; how many of its key came before."""
        with self._lock:
            self._requests.append(request)
            before = self._came.get(request.key, 0)
            self._came[request.key] = before + 1
            return before

    def charge(self, request: Request) -> tuple[str, bool]:
        """The key's receipt, and whether the card was charged for it just now."""
        with self._lock:
            known = self._receipts.get(request.key)
            if known is not None:
                return known, False
            receipt = self._receipts[request.key] = f"r-{len(self._receipts) + 1:04}"
            self._charged[request.order_id] = self._charged.get(request.order_id, 0) + 1
            return receipt, True

    def running(self) -> list[Request]:
        with self._lock:
            return [request for request in self._requests if request.running]

    def everything(self) -> dict[str, Any]:
        with self._lock:
            return {
                "requests": [asdict(request) for request in self._requests],
                "charges": dict(self._charged),
                "receipts": dict(self._receipts),
            }


class Desk(BaseHTTPRequestHandler):
    """Answers one request."""

    server: PaymentService

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if self.path == "/charges":
            self._charge(body)
        elif self.path == "/unblock":
            self.server.books.unblocked = True
            self._answer(HTTPStatus.OK, {})
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"expected /charges or /unblock, got {self.path}"})

    def do_GET(self) -> None:
        if self.path == "/running":
            self._answer(HTTPStatus.OK, [asdict(request) for request in self.server.books.running()])
        elif self.path == "/books":
            self._answer(HTTPStatus.OK, self.server.books.everything())
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"expected /running or /books, got {self.path}"})

    def _charge(self, body: dict[str, str]) -> None:
        task_id, _, attempt = self.headers["Request-Id"].partition("/")
        pid = int(self.headers["User-Agent"].partition("/")[2])
        request = Request(time.time(), body["order_id"], self.headers["Idempotency-Key"], task_id, int(attempt), pid)
        try:
            self._decide(request, body["card"])
        finally:
            request.running = False

    def _decide(self, request: Request, card: str) -> None:
        books = self.server.books
        before = books.came(request)
        time.sleep(random.uniform(0.01, 0.03))
        if card == DECLINED and not books.unblocked:
            request.answer = "declined"
            self._answer(HTTPStatus.PAYMENT_REQUIRED, {"error": "the bank declined the card"})
        elif card == TROUBLE and before < 2:
            request.answer = "trouble"
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "the bank is not there"})
        elif card == SLOW and before < 2:
            request.answer = "stalled"
            time.sleep(STALL)
        else:
            receipt, fresh = books.charge(request)
            request.answer = "charged" if fresh else "repeated"
            # Who is killed now has charged and does not know it.
            time.sleep(random.uniform(0.01, 0.03))
            if card == FORGETFUL and fresh:
                request.answer = "charged, unheard"
                time.sleep(STALL)
            else:
                self._answer(HTTPStatus.OK, {"receipt": receipt})

    def _answer(self, status: HTTPStatus, document: Any) -> None:
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """The books are the log."""


class PaymentService(ThreadingHTTPServer):
    """The service, on a free port of this machine."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        self.books = Books()
        super().__init__(("127.0.0.1", 0), Desk)

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that was killed does not listen any more
            super().handle_error(request, client_address)


if __name__ == "__main__":
    service = PaymentService()
    print(service.server_address[1], flush=True)
    service.serve_forever()
