"""One row on a real worker, which can be held while its queue is filled, and let go."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.servers import RedisServer, wait_until

from .app import ROWS, Site, make_app

ROOT = Path(__file__).resolve().parent.parent
CHILDREN = 2
_numbers = itertools.count()


class BenchRedis(RedisServer):
    """A Redis that writes nothing to disk: the disk is not what is measured."""

    def command(self) -> list[str]:
        return [*super().command(), "--appendonly", "no"]


@dataclass(frozen=True)
class Drained:
    """What draining one queue took, from the first message to the last, per task."""

    seconds: float
    main_cpu: float
    child_cpu: float
    server_cpu: float


class Lane:
    """A prefork worker of two processes, and the app that sends to it.

    Args:
        site: The row, and where it runs.
        folder: For its log and its marks.
        servers: Process ids of the servers whose CPU time is counted.
    """

    def __init__(self, site: Site, folder: Path, servers: list[int]) -> None:
        self.folder = folder
        self._servers = servers
        self._app = make_app(site)
        self.charge: Any = self._app.tasks["charge"]
        self._gate: IO[str] | None = None
        command = f"-m celery -A benchmarks.entry worker -P prefork -c {CHILDREN} -n {site.queue}@localhost"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *command.split(),
                    *("-l", ROWS[site.row].level),
                    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
                ],
                cwd=ROOT,
                env={**os.environ, **site.environment()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    def close(self) -> None:
        self.let_go()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._app.close()

    def hold(self) -> None:
        """Occupy both children, so that what is published now waits in the queue."""
        name = f"gate-{next(_numbers)}"
        self._gate = (self.folder / name).open("w")
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        for _ in range(CHILDREN):
            self._send("hold", str(self.folder / name))
        self._wait(lambda: len(list(self.folder.glob(f"{name}.*"))) == CHILDREN, "the worker's children are held")

    def publish(self, count: int) -> float:
        """Send the task so many times, each with a key of its own, and return the seconds that took."""
        orders = [f"order-{next(_numbers):08d}" for _ in range(count)]
        delay = self.charge.delay
        began = time.perf_counter()
        for order in orders:
            delay(order, 990)
        return time.perf_counter() - began

    def mark(self, name: str) -> None:
        self._send("mark", str(self.folder / name), self._servers)

    def let_go(self) -> None:
        if self._gate is not None:
            self._gate.close()  # which unlocks it
            self._gate = None

    def read(self, name: str) -> dict[str, float]:
        """Wait for a mark, and take it."""
        path = self.folder / name
        self._wait(path.exists, f"the worker reaches the mark {name!r}")
        found: dict[str, float] = json.loads(path.read_text())
        path.unlink()
        return found

    def drained(self, count: int) -> Drained:
        """Let the worker go, and measure between the marks ``first`` and ``last``."""
        self.let_go()
        first, last = self.read("first"), self.read("last")
        return Drained(*((last[what] - first[what]) / count for what in ("time", "main", "children", "servers")))

    def _send(self, task: str, *args: Any) -> None:
        self._app.tasks[task].delay(*args)

    def _wait(self, condition: Any, what: str) -> None:
        def checked() -> object:
            if self._process.poll() is not None:
                raise RuntimeError(f"the worker ended: {self.log.read_text(errors='replace')[-2000:]}")
            return condition()

        wait_until(checked, 120, what)
