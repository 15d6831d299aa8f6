"""How often a task asks the store, counted between the store and everybody who speaks to it."""

from __future__ import annotations

import socket
import socketserver
import tempfile
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

from .app import ALL, Site
from .lane import BenchRedis, Lane
from .measure import Section, Table, Target


class CountingProxy(socketserver.ThreadingTCPServer):
    """Passes everything on, and counts a round trip each time a request follows an answer on its connection."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)
        self.upstream = ("127.0.0.1", port)
        self.commands: Counter[str] = Counter()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def taken(self) -> Counter[str]:
        """What was counted since the last time, by the first command of each round trip."""
        found, self.commands = self.commands, Counter()
        return found


class _Passage(socketserver.BaseRequestHandler):
    server: CountingProxy
    request: socket.socket

    def handle(self) -> None:
        self.asking = False
        with socket.create_connection(self.server.upstream) as upstream:
            threading.Thread(target=self._answers, args=(upstream,), daemon=True).start()
            while chunk := self.request.recv(65536):
                if not self.asking:
                    self.asking = True
                    self.server.commands[_command(chunk)] += 1
                upstream.sendall(chunk)

    def _answers(self, upstream: socket.socket) -> None:
        try:
            while chunk := upstream.recv(65536):
                self.asking = False
                self.request.sendall(chunk)
        except OSError:  # the other half is closed
            return


def _command(chunk: bytes) -> str:
    parts = chunk.split(b"\r\n", 3)
    return parts[2].decode().upper() if chunk.startswith(b"*") and len(parts) > 2 else "?"


def measure(*, quick: bool) -> Section:
    tasks = 100 if quick else 400
    server = BenchRedis()
    server.start()
    try:
        with CountingProxy(server.port) as proxy, tempfile.TemporaryDirectory() as folder:
            counted = _count(
                proxy, Site(ALL, server.url(), f"redis://127.0.0.1:{proxy.port}/1", "trips"), folder, tasks
            )
            proxy.shutdown()
    finally:
        server.close()
    rows = [
        (what, f"{sum(commands.values()) / tasks:g}", ", ".join(f"{n} {name}" for name, n in commands.items()) or "-")
        for what, commands in counted.items()
    ]
    ours = [sum(counted[what].values()) / tasks for what in (PUBLISH, WORKER)]
    return Section(
        "round trips",
        [
            Table(
                f"Round trips to the store per task, counted on the wire over {tasks} tasks with everything on",
                ("where", "round trips", "commands counted"),
                rows,
                "The producer and a prefork worker of two processes reach the store through a proxy that counts. Each "
                "child's first task, which connects, is left out.",
            )
        ],
        [
            Target("idempotent, round trips in the worker", "exactly 2", f"{ours[1]:g}", ours[1] == 2),
            Target("idempotent, round trips at publish", "none", f"{ours[0]:g}", ours[0] == 0),
        ],
        {what: dict(commands) for what, commands in counted.items()},
    )


PUBLISH, WORKER, AGAIN = "publishing", "in the worker", "in the worker, a duplicate of finished work"


def _count(proxy: CountingProxy, site: Site, folder: str, tasks: int) -> dict[str, Counter[str]]:
    counted: dict[str, Counter[str]] = {}
    with closing(Lane(site, Path(folder), [])) as lane:
        lane.publish(200)  # both children connect
        lane.mark("last")
        lane.read("last")
        orders = [f"trip-{number}" for number in range(tasks)]
        for what in (WORKER, AGAIN):
            lane.hold()
            proxy.taken()
            for order in orders:
                lane.charge.delay(order, 990)
            counted.setdefault(PUBLISH, proxy.taken())
            lane.mark("last")
            lane.let_go()
            lane.read("last")
            lane.hold()  # a child that is held has finished what it ran
            counted[what] = proxy.taken()
            lane.let_go()
    return counted
