"""One test's own corner of the servers: a namespace, an app, workers that can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from .apps.floor import Traces, make_app
from .servers import _children, wait_until

#: A Redis list, a classic queue and a quorum queue.
BROKERS = ("redis", "rabbitmq", "quorum")

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """A real ``celery worker`` in a process of its own."""

    def __init__(self, environment: dict[str, str], queue: str, log: Path, *, pool: str, concurrency: int) -> None:
        self.log = log
        self.queue = queue
        self.name = f"{uuid.uuid4().hex[:8]}@localhost"
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "celery",
                    "-A",
                    "tests.apps.entry",
                    "worker",
                    "-P",
                    pool,
                    "-c",
                    str(concurrency),
                    "-Q",
                    queue,
                    "-n",
                    self.name,
                    "-l",
                    "INFO",
                    "--without-gossip",
                    "--without-mingle",
                ],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> Worker:
        wait_until(self._ready, 40, "the worker is ready")
        return self

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the worker ended with {self.process.returncode}:\n{self.text()[-3000:]}")
        return " ready." in self.text()

    def children(self) -> list[int]:
        return _children(self.pid)

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL the whole worker: the main process, whose children die with it."""
        pids = self.children()
        self.process.kill()
        self.process.wait()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGUSR1)  # Celery writes the stacks of all threads to its log
                wait_until(lambda: "MainThread" in self.text() or not self.alive(), 5, "the stacks")
                self.kill()
        return int(self.process.returncode)


@dataclass
class Floor:
    """The corner itself."""

    environment: dict[str, str]
    folder: Path
    app: Celery = field(init=False)
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.app = make_app(self.environment)

    @property
    def traces(self) -> Traces:
        return self.app.traces

    @property
    def queue(self) -> str:
        return f"q-{self.environment['FLOOR_NAMESPACE']}"

    @property
    def dead(self) -> str:
        return f"{self.queue}.dead"

    def task(self, name: str) -> Any:
        return self.app.tasks[name]

    def worker(self, *, pool: str = "prefork", concurrency: int = 2, ready: bool = True, **environment: str) -> Worker:
        worker = Worker(
            {**self.environment, **environment},
            environment.get("FLOOR_CONSUME", self.queue),
            self.folder / f"worker-{len(self.workers)}.log",
            pool=pool,
            concurrency=concurrency,
        )
        self.workers.append(worker)
        return worker.wait_ready() if ready else worker

    @contextmanager
    def supervised(self, number: int, **settings: Any) -> Iterator[None]:
        """Workers that are started again whenever they are gone, as a supervisor does it."""
        keeping = [self.worker(**settings) for _ in range(number)]
        over = threading.Event()

        def keep() -> None:
            while not over.wait(0.05):
                for at, worker in enumerate(keeping):
                    if not worker.alive():
                        keeping[at] = self.worker(ready=False, **settings)

        thread = threading.Thread(target=keep)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def letters(self) -> list[Any]:
        from celery_patterns import dead_letters

        return list(dead_letters(self.app, self.dead))

    def wait(self, condition: Callable[[], object], seconds: float = 20.0, what: object = "the condition") -> object:
        try:
            return wait_until(condition, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; logs:\n{self.logs()}") from None

    def logs(self) -> str:
        return "\n".join(worker.text()[-3000:] for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill() if worker.alive() else None
        self.app.close()


@contextmanager
def floor(environment: dict[str, str], folder: Path) -> Iterator[Floor]:
    made = Floor({**environment, "FLOOR_NAMESPACE": uuid.uuid4().hex[:10]}, folder)
    try:
        yield made
    finally:
        made.close()
