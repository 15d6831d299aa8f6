"""Run one message of a task in this process, the way a pool child does: Celery's own tracer, without the child."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded
from celery.app.trace import build_tracer


class Outcome:
    """What became of one message."""

    def __init__(self, task_id: str, returned: Any) -> None:
        self.id = task_id
        self.state = returned.info.state if returned.info is not None else "SUCCESS"
        value = returned.retval
        #: What a pool's child would send to its main process.
        self.told = value
        if isinstance(value, ExceptionInfo):
            value = value.exception
            value = getattr(value, "exc", value)
        self.value = value


def run_here(
    task: Any,
    *args: Any,
    task_id: str | None = None,
    retries: int = 0,
    redelivered: bool = False,
    headers: dict[str, Any] | None = None,
    queue: str | None = None,
    nesting: int = 0,
    **kwargs: Any,
) -> Outcome:
    """Trace one message; the same ``task_id`` and ``retries`` again is a redelivery."""
    task_id = task_id or str(uuid.uuid4())
    queue = queue or task.app.conf.task_default_queue
    request = {
        "id": task_id,
        "task": task.name,
        "lang": "py",
        "root_id": task_id,
        "retries": retries,
        "replaced_task_nesting": nesting,
        "hostname": "here",
        "delivery_info": {"exchange": "", "routing_key": queue, "priority": 0, "redelivered": redelivered},
        **(headers or {}),
    }
    tracer = build_tracer(task.name, task, app=task.app)
    return Outcome(task_id, _Returned(*tracer(task_id, args, kwargs, request)))


class _Returned:
    def __init__(self, retval: Any, info: Any, runtime: Any, retstr: Any) -> None:
        self.retval, self.info = retval, info


@contextmanager
def soft_limit(seconds: float) -> Iterator[None]:
    """What a pool does to a task at its soft time limit: an exception between any two of its instructions."""

    def strike(_number: int, _frame: Any) -> None:
        raise SoftTimeLimitExceeded(seconds)

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
