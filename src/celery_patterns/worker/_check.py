"""The check that a worker makes of its tasks before it takes a message."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.utils.imports import symbol_by_name

from .._app import misfit
from .._equipment import equipment_of
from .._plan import Layer
from .._task import PatternTask
from ..exceptions import ConfigurationError
from ..letters import letters_among
from ._request import Request

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["CheckPatterns", "refusal"]

logger = logging.getLogger("celery_patterns")


class CheckPatterns(bootsteps.StartStopStep):  # type: ignore[misc]
    """Refuse to start a worker whose tasks promise what this app cannot keep."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        own = letters_among(worker.app, tuple(worker.app.amqp.queues.consume_from))
        if own:
            raise ConfigurationError(
                f"this worker consumes {min(own)}, which is for dead letters, and would run them again without end; "
                "expected it to consume other queues (-Q), or the tasks to name another dead-letter queue"
            )
        for task in worker.app.tasks.values():
            refused = refusal(worker.app, task)
            if refused:
                raise ConfigurationError(refused)
            _warn(task)


def refusal(app: Celery, task: Any) -> str | None:
    """Why no worker of this app starts with this task, and behind the semicolon what to do; None where one starts."""
    refused: str | None = getattr(task, "patterns_refused", None) or misfit(app, task)
    plan = task.plan if isinstance(task, PatternTask) else None
    if refused or plan is None:
        return refused
    layers = {pattern.layer for pattern in plan.patterns}
    if Layer.CLAIM in layers and not equipment_of(app).has_store:
        return (
            f'{task.name} wears idempotent() but its app has no store; call equip(app, store="redis://…") or '
            'use_store(app, "redis://…")'
        )
    if Layer.BURY in layers and plan.terms.crash_limit is not None and not equipment_of(app).has_store:
        return (
            f"{task.name} wears dead_letter() and its app has no store to count crashes in; call "
            'equip(app, store="redis://…") or use_store(app, "redis://…")'
        )
    # The main process writes the letters that a child cannot, through the task's request.
    return _misfit_of_request(task) if plan.buries is not None else None


def _misfit_of_request(task: PatternTask) -> str | None:
    try:
        found = symbol_by_name(task.Request)
    except Exception as error:  # noqa: BLE001 - a module of the user's runs here; Celery would fail at it, too
        return f"{task.name} has a Request that cannot be imported: {type(error).__name__}; correct its name"
    if isinstance(found, type) and issubclass(found, Request):
        return None
    return (
        f"{task.name} wears dead_letter() and has a Request class of its own; let that class extend "
        "celery_patterns.worker.Request"
    )


def _warn(task: Any) -> None:
    plan = task.plan if isinstance(task, PatternTask) else None
    promises = plan is not None and {pattern.layer for pattern in plan.patterns} & {Layer.CLAIM, Layer.BURY}
    if promises and not (task.acks_late and task.reject_on_worker_lost):
        logger.warning(
            "%s wears patterns that promise not to lose it, but says acks_late=%s and reject_on_worker_lost=%s itself: "
            "a killed worker loses the message it runs",
            task.name,
            bool(task.acks_late),
            bool(task.reject_on_worker_lost),
        )
