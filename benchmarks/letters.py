"""Replaying dead letters: how fast beside plain publishing, and in how much memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery import Celery

from celery_patterns import DeadLetters, dead_letters, idempotent, use_patterns, use_store
from celery_patterns.stores import MemoryStore
from tests.servers import RabbitServer, wait_until

from .lane import BenchRedis
from .measure import Section, Table, Target, at_least, interleaved, ratios

ROOT = Path(__file__).resolve().parent.parent
TARGET, DEAD = "bench", "bench.dead"
PUBLISH, REPLAY, KEYED = "plain apply_async", "replay_all", "replay_all, a task with a key"
#: What plain Celery does for those who want to know that a message has arrived.
CONFIRMED = "plain apply_async, confirm_publish"
RATIO, GROWTH = 0.5, 10.0
WORK = {
    "list": "letters.count()",
    "stats": "letters.stats()",
    "export": "letters.export({file!r})",
    "purge": "letters.purge(kept_in={file!r})",
    "import": "letters.restore({file!r})",
    "replay": "letters.replay_all()",
}

OPERATOR = """
import os, resource, sys, tempfile, threading, time
from celery import Celery
from celery_patterns import dead_letters
letters = dead_letters(Celery(broker=sys.argv[1]), sys.argv[2])
def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize() / 1e6
peak = 0.0
def watch():
    global peak
    while True:
        peak = max(peak, resident())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
{code}
print(max(peak, resident()))
"""


def measure(*, quick: bool) -> list[Section]:
    found = []
    for name, server in (("Redis", BenchRedis()), ("RabbitMQ", RabbitServer())):
        server.start()
        try:
            url = server.url() if isinstance(server, BenchRedis) else server.url
            found.append(_measure(name, url, quick=quick))
        finally:
            server.close()
    return found


def _measure(name: str, broker: str, *, quick: bool) -> Section:
    rounds, count = (5, 300) if quick else (15, 1000)
    sizes = (1_000, 10_000) if quick else (1_000, 100_000)
    site = _Site(broker)
    confirms = name == "RabbitMQ"
    with closing(site.app), closing(site.plain), closing(site.confirmed):
        cases = {
            PUBLISH: lambda: site.publish(site.plain, count),
            REPLAY: lambda: site.replay(site.letters, count),
            KEYED: lambda: site.replay(site.keyed, count),
        }
        if confirms:
            cases[CONFIRMED] = lambda: site.publish(site.confirmed, count)
        interleaved(cases, 1)  # connects
        seconds = interleaved(cases, rounds)
        peaks = {size: site.peaks(size) for size in sizes}
    # On RabbitMQ a message without a key is confirmed before the next one is sent; plain Celery asks for that only if told.
    compared = [(KEYED, PUBLISH), (REPLAY, CONFIRMED if confirms else PUBLISH)]
    few, many = sizes
    growth = {what: peaks[many][what] - peaks[few][what] for what in WORK}
    return Section(
        f"letters, {name}",
        [
            Table(
                f"Replaying letters on {name}, in one process, {count} letters a round, {rounds} rounds",
                ("what", "messages a second, median"),
                [(what, f"{count / statistics.median(found):,.0f}") for what, found in seconds.items()],
                "The same message each time: plain Celery's `apply_async` of a task with two arguments, and the replay of "
                "its letter, with a traceback of 2,000 characters.",
            ),
            Table(
                f"Memory of an operator's process on {name}, the highest seen, MB",
                ("what", f"{few:,} letters", f"{many:,} letters"),
                [(what, f"{peaks[few][what]:.1f}", f"{peaks[many][what]:.1f}") for what in WORK],
            ),
        ],
        [
            *(
                at_least(f"{name}: {what}, rate of {beside}", RATIO, ratios(seconds[beside], seconds[what]))
                for what, beside in compared
            ),
            Target(
                f"memory for {many:,} letters over that for {few:,}, {name}",
                f"at most {GROWTH:g} MB",
                f"{max(growth.values()):.1f} MB",
                max(growth.values()) <= GROWTH,
            ),
        ],
        {"seconds": seconds, "MB": {str(size): found for size, found in peaks.items()}},
    )


class _Site:
    """A plain app that publishes, and letters of what it published."""

    def __init__(self, broker: str) -> None:
        self.broker = broker
        self.plain, self.app = Celery("plain", broker=broker, set_as_current=False), Celery("ours", broker=broker)
        self.confirmed = Celery("confirmed", broker=broker, set_as_current=False)
        self.confirmed.conf.broker_transport_options = {"confirm_publish": True}
        use_patterns(self.app)
        for app in (self.plain, self.app, self.confirmed):
            app.conf.task_default_queue = TARGET
            app.conf.task_ignore_result = True
        for app in (self.plain, self.confirmed):
            app.task(name="charge", shared=False)(_charge)
        self.letters = dead_letters(self.app, DEAD)
        self.keyed = dead_letters(self._that_knows(), DEAD)
        self._letter = self._written()

    def _that_knows(self) -> Celery:
        """An app that knows the task and its key."""
        app = Celery("keyed", broker=self.broker, set_as_current=False)
        use_patterns(app)
        use_store(app, MemoryStore())
        app.conf.task_default_queue = TARGET
        # As an option: put on the function, the key would stay on it for the next broker's app.
        keyed = (idempotent(key="order_id", ttl=timedelta(hours=1)),)
        app.task(name="charge", shared=False, patterns=keyed)(_charge)
        return app

    def _written(self) -> Any:
        """One letter, as a worker would have written it, as the arguments of a publish."""
        from celery_patterns._letter import LETTER, Letter, header_of  # noqa: PLC0415 - what no user needs

        self.plain.tasks["charge"].apply_async(("order-1", 990))
        with self.plain.connection_for_read() as connection, connection.SimpleQueue(TARGET) as queue:
            message = queue.get(timeout=10)
            message.ack()
        now = time.time()
        letter = Letter(
            id="0" * 32,
            task="charge",
            task_id=message.headers["id"],
            root_id=message.headers["id"],
            reason="failed",
            error="builtins.ValueError",
            message="over the limit",
            traceback="x" * 2000,
            attempt=1,
            queue=TARGET,
            exchange="",
            routing_key=TARGET,
            priority=0,
            first_started=now,
            died_at=now,
            worker="w",
        )
        headers = dict(message.headers)
        return message.body, headers, header_of(letter), LETTER

    def publish(self, app: Celery, count: int) -> float:
        send = app.tasks["charge"].apply_async
        began = time.perf_counter()
        for number in range(count):
            send((f"order-{number}", 990))
        took = time.perf_counter() - began
        self._empty(TARGET, count)
        return took

    def replay(self, letters: DeadLetters, count: int) -> float:
        self.fill(count)
        began = time.perf_counter()
        report = letters.replay_all()
        took = time.perf_counter() - began
        if (report.sent, report.failed) != (count, 0):
            raise RuntimeError(f"expected {count} letters to be replayed, got {report}")
        self._empty(TARGET, count)
        return took

    def fill(self, count: int) -> None:
        """So many letters, each of an id of its own."""
        body, headers, told, name = self._letter
        self._numbered = getattr(self, "_numbered", 0) + count
        with self.app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            if connection.transport.driver_type == "amqp":
                channel.queue_declare(queue=DEAD, durable=True, auto_delete=False)
            for number in range(self._numbered - count, self._numbered):
                letter = {**headers, name: told.replace("0" * 32, f"{number:032x}", 1)}
                message = channel.prepare_message(body, None, "application/json", "utf-8", letter, {"delivery_mode": 2})
                channel.basic_publish(message, exchange="", routing_key=DEAD)
        wait_until(lambda: self._length(DEAD) == count, 60, "the letters stand")

    def peaks(self, count: int) -> dict[str, float]:
        """The memory of one process for each work, on so many letters."""
        self.fill(count)
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "letters.jsonl")
            found = {what: self._peak(code.format(file=file)) for what, code in WORK.items()}
        self._empty(TARGET, count)
        return found

    def _peak(self, code: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", OPERATOR.replace("{code}", code), self.broker, DEAD],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        return float(done.stdout)

    def _length(self, queue: str) -> int:
        with self.app.connection_for_read() as connection:
            return int(connection.default_channel.queue_declare(queue=queue, passive=True).message_count)

    def _empty(self, queue: str, count: int) -> None:
        wait_until(lambda: self._length(queue) == count, 60, f"{count} messages stand in {queue}")
        with self.app.connection_for_write() as connection:
            connection.default_channel.queue_purge(queue)


def _charge(order_id: str, cents: int) -> str:
    return f"{order_id}: {cents}"
