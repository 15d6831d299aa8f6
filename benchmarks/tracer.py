"""What each pattern adds to one task, in the function that a worker's child calls for every message.

No broker, no store, no pool: Celery's own tracer runs a body of nothing for a message that was really published.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery
from celery.app.trace import build_tracer
from celery.utils.log import ColorFormatter
from celery.worker.request import Request

import celery_patterns as patterns
from celery_patterns import Pattern

from .measure import Section, Spread, Table, at_most, differences, interleaved, ratios

PLAIN, ALL = "plain task", "all, one event"
LOGGED = (patterns.logged("order_id"),)
RETRY = (patterns.retry(on=(ConnectionError, TimeoutError)),)
BURY = (patterns.dead_letter("bench.dead", max_crashes=None),)


@dataclass(frozen=True)
class Case:
    """One task: what it wears, and which lines are written for it."""

    wears: tuple[Pattern, ...] = ()
    events: bool = False
    celerys_line: bool = False


CASES = {
    PLAIN: Case(),
    "plain task, Celery's INFO line": Case(celerys_line=True),
    "retry": Case(RETRY),
    "dead_letter": Case(BURY),
    "logged, silent": Case(LOGGED),
    "logged, one event": Case(LOGGED, events=True),
    "all, silent": Case((*LOGGED, *BURY, *RETRY)),
    ALL: Case((*LOGGED, *BURY, *RETRY), events=True),
}


def measure(*, quick: bool) -> Section:
    rounds, calls = (21, 300) if quick else (61, 500)
    times = interleaved({name: partial(time, calls) for name, time in _timers().items()}, rounds)
    added = {name: differences(values, times[PLAIN]) for name, values in times.items()}
    best = {name: min(values) for name, values in times.items()}
    rows = [
        (
            name,
            f"{Spread.of(times[name]).median:.1f}",
            Spread.of(added[name]).text(1),
            f"{best[name] - best[PLAIN]:.1f}",
            f"{Spread.of(ratios(added[name], times[PLAIN])).median:.2f}",
        )
        for name in CASES
    ]
    title = f"One task in the tracer, µs of CPU time: median of {rounds} interleaved rounds (quartiles)"
    notes = (
        "All: logged, dead_letter and retry, without a store. Celery's line goes through its own formatter, our event "
        "through `use_structlog`; both are written to the null device."
    )
    return Section(
        "tracer",
        [Table(title, ("task", "µs", "added to plain", "between the best rounds", "in plain tasks"), rows, notes)],
        [at_most("all patterns without a store, one event, added to a task", 10, added[ALL], "µs")],
        {"microseconds": times},
    )


def _timers() -> dict[str, Callable[[int], float]]:
    app = Celery("bench", broker="memory://", set_as_current=False)
    app.conf.update(task_ignore_result=True, task_acks_late=True)
    patterns.use_patterns(app)
    patterns.use_structlog(app)
    null = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as there are loggers
    with contextlib.redirect_stderr(null):
        app.log.setup_logging_subsystem(loglevel="INFO")
    celerys = logging.getLogger("celery.app.trace")
    handler = logging.StreamHandler(null)
    handler.setFormatter(ColorFormatter(app.conf.worker_log_format, use_color=False))
    celerys.addHandler(handler)
    celerys.propagate = False
    return {name: _timer(app, name, case) for name, case in CASES.items()}


def _timer(app: Celery, name: str, case: Case) -> Callable[[int], float]:
    def charge(order_id: str, amount: int) -> None: ...

    app.task(charge, name=name, shared=False, patterns=case.wears)
    task = app.tasks[name]
    request = _received(app, task)
    levels = {"celery.app.trace": case.celerys_line, "celery_patterns": case.events}
    _set_levels(levels)  # the tracer looks at Celery's when it is built
    trace = build_tracer(name, task, app=app)

    def microseconds(calls: int) -> float:
        _set_levels(levels)
        began = time.process_time()
        for _ in range(calls):
            trace(request["id"], request["args"], request["kwargs"], request)
        return (time.process_time() - began) / calls * 1e6

    return microseconds


def _set_levels(wanted: dict[str, bool]) -> None:
    for name, spoken in wanted.items():
        logging.getLogger(name).setLevel(logging.INFO if spoken else logging.WARNING)


def _received(app: Celery, task: Any) -> dict[str, Any]:
    """The request that a worker makes of the task's message."""
    task.apply_async(("order-000001", 990))
    with app.connection_for_read() as connection:
        message = app.amqp.queues[app.conf.task_default_queue](connection.default_channel).get()
        request: dict[str, Any] = Request(message, app=app, task=task).request_dict
    return {**request, "is_eager": False, "callbacks": None, "errbacks": None, "chain": None, "chord": None}
