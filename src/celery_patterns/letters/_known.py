"""Which dead-letter queues an app may write to, and how much stands in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .._plan import Layer
from .._queues import dead_queue
from .._task import PatternTask
from ._walk import Walk

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["dead_queues", "named_queues", "standing"]

_CELERYS_OWN = "celery."


def named_queues(app: Celery) -> list[str]:
    """The dead-letter queues of the app's tasks."""
    found = set()
    for name, task in _tasks(app):
        plan = task.plan if isinstance(task, PatternTask) else None
        for pattern in () if plan is None else plan.patterns:
            if pattern.layer is Layer.BURY:
                found.add(getattr(pattern, "queue", None) or dead_queue(_queue_of(app, name, task)))
    return sorted(found)


def dead_queues(app: Celery) -> list[str]:
    """Every dead-letter queue that the app may write to.

    That is its tasks' own, and ``<queue>.dead`` of each queue that it names, for the messages there that name no task. It
    cannot know of a queue that only a worker's ``-Q`` names.
    """
    named = named_queues(app)
    queues = {_queue_of(app, name, task) for name, task in _tasks(app)} | {str(name) for name in app.amqp.queues}
    return sorted({*named, *(dead_queue(queue) for queue in queues - {*named})})


def standing(app: Celery, queues: Iterable[str]) -> dict[str, int]:
    """How many messages stand in each of these queues, of those that the broker has."""
    found = {}
    for queue in queues:
        with ExitStack() as stack:
            count = Walk(app, queue).open(stack).standing()
        if count is not None:
            found[queue] = count
    return found


def _tasks(app: Celery) -> Iterator[tuple[str, Any]]:
    return ((name, task) for name, task in list(app.tasks.items()) if not name.startswith(_CELERYS_OWN))


def _queue_of(app: Celery, name: str, task: Any) -> str:
    route = app.amqp.router.route(task._get_exec_options(), name)  # noqa: SLF001 - what apply_async asks, too
    queue = route.get("queue")
    return str(getattr(queue, "name", queue) or app.conf.task_default_queue)
