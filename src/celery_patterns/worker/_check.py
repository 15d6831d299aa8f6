"""The check that a worker makes of its tasks before it takes a message."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps
from celery.utils.imports import symbol_by_name

from .._app import misfit
from .._equipment import equipment_of
from .._plan import Layer
from .._task import PatternTask
from ..exceptions import ConfigurationError
from ..letters import refuse_worker
from ._request import Request

__all__ = ["CheckPatterns"]

logger = logging.getLogger("celery_patterns")


class CheckPatterns(bootsteps.StartStopStep):  # type: ignore[misc]
    """Refuse to start a worker whose tasks promise what this app cannot keep."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        refuse_worker(worker.app, tuple(worker.app.amqp.queues.consume_from))
        for task in worker.app.tasks.values():
            refused = getattr(task, "patterns_refused", None) or misfit(worker.app, task)
            if refused:
                raise ConfigurationError(refused)
            if isinstance(task, PatternTask) and task.plan is not None:
                _check(worker.app, task)
                _refuse_other_requests(task)


def _refuse_other_requests(task: PatternTask) -> None:
    """The main process writes the letters that a child cannot, through the task's request."""
    assert task.plan is not None
    if task.plan.buries is not None and not issubclass(symbol_by_name(task.Request), Request):
        raise ConfigurationError(
            f"{task.name} wears dead_letter() and has a Request class of its own; expected one that extends "
            "celery_patterns.worker.Request"
        )


def _check(app: Any, task: PatternTask) -> None:
    plan = task.plan
    assert plan is not None
    layers = {pattern.layer for pattern in plan.patterns}
    if Layer.CLAIM in layers and not equipment_of(app).has_store:
        raise ConfigurationError(
            f'{task.name} wears idempotent() but its app has no store; expected equip(app, store="redis://…") or '
            'use_store(app, "redis://…")',
        )
    if Layer.BURY in layers and plan.terms.crash_limit is not None and not equipment_of(app).has_store:
        raise ConfigurationError(
            f"{task.name} wears dead_letter() and its app has no store to count crashes in; expected use_store(app, …), "
            "or dead_letter(max_crashes=None), or acks_late=False on the task",
        )
    if layers & {Layer.CLAIM, Layer.BURY} and not (task.acks_late and task.reject_on_worker_lost):
        logger.warning(
            "%s wears patterns that promise not to lose it, but says acks_late=%s and reject_on_worker_lost=%s itself: "
            "a killed worker loses the message it runs",
            task.name,
            bool(task.acks_late),
            bool(task.reject_on_worker_lost),
        )
