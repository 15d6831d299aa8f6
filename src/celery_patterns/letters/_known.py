"""Which dead-letter queues an app may write to, and how much stands in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .._dead_letter import dead_letter
from .._plan import worn
from .._queues import dead_queue
from ..exceptions import ConfigurationError
from ._walk import Walk

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["dead_queues", "letters_among", "named_queues", "refuse_consumed", "refuse_unconsumed", "standing"]

_CELERYS_OWN = "celery."


def named_queues(app: Celery) -> list[str]:
    """The dead-letter queues of the app's tasks."""
    found = set()
    for name, task in _tasks(app):
        pattern = worn(task, dead_letter)
        if pattern is not None:
            found |= {pattern.queue} if pattern.queue else {dead_queue(one) for one in _queue_of(app, name, task)}
    return sorted(found)


def dead_queues(app: Celery) -> list[str]:
    """Every dead-letter queue that the app may write to.

    That is its tasks' own, and ``<queue>.dead`` of each queue that it names, for the messages there that name no task. It
    cannot know of a queue that only a worker's ``-Q`` names.
    """
    named = named_queues(app)
    return sorted({*named, *(dead_queue(queue) for queue in _consumed(app, named))})


def letters_among(app: Celery, consumed: Collection[str]) -> set[str]:
    """Those of a worker's queues that are for dead letters, which it would run again and again, as fast as it can."""
    wearing = {name for name, task in _tasks(app) if worn(task, dead_letter) is not None}
    if not wearing:
        return set()
    named = {*named_queues(app)}
    others = {queue for name, task in _tasks(app) if name not in wearing for queue in _queue_of(app, name, task)}
    return {*consumed} & (named | ({*dead_queues(app), *map(dead_queue, consumed)} - others))


def refuse_consumed(app: Celery, queue: str) -> None:
    """Refuse to put letters where workers look for tasks: they would be run.

    Raises:
        ConfigurationError: When it is such a queue.
    """
    if queue in _consumed(app, named_queues(app)):
        raise ConfigurationError(f"{queue} is where the app's tasks go; expected a dead-letter queue")


def refuse_unconsumed(app: Celery, queue: str) -> None:
    """Refuse to send tasks to a dead-letter queue, which no worker consumes.

    Raises:
        ConfigurationError: When it is one of the app's.
    """
    named = named_queues(app)
    consumed = _consumed(app, named)
    if queue not in consumed and queue in {*named, *map(dead_queue, consumed)}:
        raise ConfigurationError(f"{queue} is for dead letters; expected a queue that a worker consumes")


def _consumed(app: Celery, named: Iterable[str]) -> set[str]:
    """The queues that the app knows, but for those that are named for letters."""
    tasks = {queue for name, task in _tasks(app) for queue in _queue_of(app, name, task)}
    return {*tasks, *map(str, app.amqp.queues), str(app.conf.task_default_queue)} - {*named}


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


def _queue_of(app: Celery, name: str, task: Any) -> tuple[str, ...]:
    """The queue that a task goes to; none when that cannot be said without its arguments."""
    queues = app.amqp.queues
    known = {*queues}
    try:
        route = app.amqp.router.route(task._get_exec_options(), name)  # noqa: SLF001 - what apply_async asks, too
    except Exception:  # noqa: BLE001 - a router is the user's, and may look at what no call has given
        return ()
    finally:
        # To route is to make the queue known; before Celery 5.7 a worker would then consume it.
        for made in queues.keys() - known:
            del queues[made]
    queue = route.get("queue")
    return (str(getattr(queue, "name", queue) or app.conf.task_default_queue),)
