"""The workers that listen now, and what each says of itself."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Worker", "ask_workers"]

#: The question that is none of Celery's own.
_CLOCK = "clock"
#: Seconds until we hear what is sent.
_HEARS = 0.05
#: What a worker alone sends; ``task-sent`` is the sender's.
_OF_TASKS = frozenset({"task-received", "task-started", "task-succeeded", "task-failed", "task-retried"})
#: How a worker tells of a task what it was asked for.
_WORN = re.compile(r"^(\S+) \[plan=([\w+]+(?: \S+)?)\]$", re.MULTILINE)
_VERSIONS = re.compile(r"\b(celery|kombu|billiard|py):([\w.+-]+)")


@dataclass(frozen=True)
class Worker:
    """One worker.

    Attributes:
        name: Its node's name.
        tasks: The names of the tasks that it knows; None where it did not say.
        wears: Of those that wear patterns, which, and which edition of them.
        queues: The names of the queues that it listens to; None where it did not say.
        pool: What runs its tasks: ``prefork``, ``thread``, ``solo``, ``gevent``, ``eventlet``.
        slots: How many tasks it runs at once.
        prefetch: How many messages it takes from the queues at most; 0: no limit.
        limits: The soft and the hard limit that it was started with, in seconds.
        settings: Its settings, with their defaults, secrets left out; None where it did not say.
        versions: Of Celery, kombu, billiard and Python.
        ahead: How far its clock is before ours, in seconds; None where it did not say.
        sends_events: Whether it was heard to send events of its tasks.
        failed: The questions to which its answer was an error.
    """

    name: str
    tasks: frozenset[str] | None
    wears: Mapping[str, str]
    queues: frozenset[str] | None
    pool: str
    slots: int
    prefetch: int
    limits: tuple[float | None, float | None]
    settings: Mapping[str, Any] | None
    versions: Mapping[str, str]
    ahead: float | None
    sends_events: bool
    failed: tuple[str, ...]


def ask_workers(app: Celery, timeout: float) -> tuple[Worker, ...] | str:
    """Ask them all, six questions at once.

    Args:
        app: The app.
        timeout: Seconds within which they must have answered.

    Returns:
        Those that answered; or why they could not be asked.
    """
    answers: dict[str, dict[str, Any]] = {}
    clocks: dict[str, float] = {}
    eventful: set[str] = set()
    failed: list[str] = []

    def ask(question: str, arguments: tuple[Any, ...]) -> None:
        # A thread that is over its time is left to itself, and with it its connection.
        try:
            with app.connection_for_write() as connection:
                if question == _CLOCK:
                    _listen(app, connection, timeout, clocks, eventful)
                    return
                inspect = app.control.inspect(timeout=timeout, connection=connection)
                answers[question] = getattr(inspect, question)(*arguments) or {}
        except Exception as error:  # noqa: BLE001 - whatever the broker or its driver says
            failed.append(type(error).__name__)

    with_defaults = True
    questions: tuple[tuple[str, tuple[Any, ...]], ...] = (
        *((name, ()) for name in ("stats", "active_queues", "report", _CLOCK)),
        ("registered", ("plan",)),
        ("conf", (with_defaults,)),
    )
    threads = [threading.Thread(target=ask, args=one, daemon=True) for one in questions]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout + 2.0
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    told = dict(answers)  # a thread that is late may still add to the other
    names = sorted({name for answer in told.values() for name in answer})
    if not names and failed:
        return f"the workers: the question to them failed ({failed[0]})"
    return tuple(_worker(name, told, clocks.get(name), name in eventful) for name in names)


def _listen(app: Celery, connection: Any, timeout: float, ahead: dict[str, float], eventful: set[str]) -> None:
    """Let each worker send a heartbeat at once, which has the moment in it; and hear what it sends of its tasks."""
    deadline = time.monotonic() + timeout

    def heard(event: Any, _: Any) -> None:
        for one in event if isinstance(event, list) else [event]:
            kind = str(one.get("type"))
            if kind == "worker-heartbeat":
                ahead[str(one["hostname"])] = float(one["timestamp"]) - time.time()
            elif kind in _OF_TASKS:
                eventful.add(str(one["hostname"]))

    queue = app.events.Receiver(connection).queue
    with connection.Consumer(queues=[queue], callbacks=[heard], no_ack=True, accept=["json"]):
        with suppress(TimeoutError):
            connection.drain_events(timeout=_HEARS)  # on Redis nothing is heard before the first of them
        app.control.broadcast("heartbeat", connection=connection)
        with suppress(TimeoutError):
            while (left := deadline - time.monotonic()) > 0:
                connection.drain_events(timeout=left)


def _worker(name: str, answers: Mapping[str, Mapping[str, Any]], ahead: float | None, sends_events: bool) -> Worker:
    def of(question: str) -> Any:
        return answers.get(question, {}).get(name)

    def listed(question: str) -> list[Any] | None:
        answer = of(question)
        return answer if isinstance(answer, list) else None  # whoever cannot answer says so in a dict

    stats: dict[str, Any] = of("stats") or {}
    pool: dict[str, Any] = stats.get("pool") or {}
    soft, hard = [*(pool.get("timeouts") or ()), None, None][:2]
    registered, queues, conf = listed("registered"), listed("active_queues"), of("conf")
    return Worker(
        name=name,
        tasks=None if registered is None else frozenset(str(one).partition(" ")[0] for one in registered),
        wears=dict(_WORN.findall("\n".join(map(str, registered or ())))),
        queues=None if queues is None else frozenset(str(one["name"]) for one in queues),
        pool=str(pool.get("implementation", "")).partition(":")[0].rpartition(".")[2],
        slots=_slots(pool),
        prefetch=int(stats.get("prefetch_count") or 0),
        limits=(float(soft) if soft else None, float(hard) if hard else None),
        settings=conf if isinstance(conf, dict) else None,
        versions=dict(_VERSIONS.findall(str((of("report") or {}).get("ok", "")))),
        ahead=ahead,
        sends_events=sends_events,
        failed=tuple(one for one in ("registered", "active_queues") if of(one) is not None and listed(one) is None),
    )


def _slots(pool: Mapping[str, Any]) -> int:
    found = pool.get("max-concurrency") or 1
    return int(found) if isinstance(found, int | str) else 1
