"""What is to be known of one task: its patterns, its limits, and how long all of it can take."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery.app.task import Task
from celery.exceptions import QueueNotFound
from celery.utils.objects import mro_lookup
from kombu.common import Broadcast

from .._dead_letter import dead_letter
from .._idempotent import idempotent
from .._plan import Plan
from .._queues import dead_queue
from .._retry import retry
from .._task import body_of
from .._waits import longest_wait

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["TaskFacts", "facts_of", "seconds"]

#: Celery's own ``default_retry_delay``, in seconds.
_DEFAULT_DELAY = 180.0
#: Behind so many attempts a wait has grown as far as it does.
_STEADY = 100
_QUOTED = re.compile(r"'([^']*)'")


@dataclass(frozen=True)
class TaskFacts:
    """One task of the app's.

    Attributes:
        task: The task itself.
        app: Its app.
    """

    task: Any
    app: Celery

    @cached_property
    def name(self) -> str:
        return str(self.task.name)

    @cached_property
    def _patterns(self) -> dict[type, Any]:
        plan = getattr(self.task, "plan", None)
        return {type(pattern): pattern for pattern in plan.patterns} if isinstance(plan, Plan) else {}

    @property
    def wears(self) -> str:
        """Its patterns, as a worker tells of them; nothing where it wears none."""
        plan = getattr(self.task, "plan", None)
        return str(plan) if isinstance(plan, Plan) else ""

    @cached_property
    def _body(self) -> tuple[Any, bool]:
        return body_of(type(self.task))

    @property
    def body(self) -> Any:
        """The user's function."""
        return self._body[0]

    @property
    def takes_itself(self) -> bool:
        """Whether the function is given the task first."""
        return self._body[1]

    @property
    def is_called_otherwise(self) -> bool:
        """Whether something of the user's stands between Celery and the function: a decorator, or a ``__call__``."""
        return (
            hasattr(self.body, "__wrapped__")
            or mro_lookup(type(self.task), "__call__", stop={Task, object}, monkey_patched=[Task.__module__])
            is not None
        )

    @property
    def retry(self) -> retry | None:
        return self._patterns.get(retry)

    @property
    def keyed(self) -> idempotent | None:
        return self._patterns.get(idempotent)

    @property
    def buries(self) -> dead_letter | None:
        return self._patterns.get(dead_letter)

    @property
    def promises(self) -> str:
        """The patterns that promise that no message is lost."""
        return " and ".join(f"{kind.kind()}()" for kind in (idempotent, dead_letter) if kind in self._patterns)

    @property
    def late(self) -> bool:
        return bool(self.task.acks_late)

    @property
    def returns_when_lost(self) -> bool:
        """Whether its message goes back to the queue when the process that runs it is killed."""
        return self.late and bool(self.task.reject_on_worker_lost)

    @property
    def hard_limit(self) -> float | None:
        """Seconds after which a worker of processes kills it."""
        return self._limit("time_limit")

    @property
    def soft_limit(self) -> float | None:
        return self._limit("soft_time_limit")

    def _limit(self, name: str) -> float | None:
        own = getattr(self.task, name, None)
        found = own if own is not None else self.app.conf[f"task_{name}"]
        try:
            return float(found) if found else None
        except (TypeError, ValueError):  # of a wrong kind: another rule says so
            return None

    def limit_line(self, name: str) -> str:
        """The setting that says the limit."""
        own = getattr(self.task, name, None)
        return f"{name}={own:g}" if own is not None else f"task_{name}={self._limit(name):g}"

    @cached_property
    def _route(self) -> tuple[str | None, str | None]:
        """The queue that it goes to; and the one that its route names, where that is not there."""
        own = getattr(self.task, "queue", None)
        try:
            route = self.app.amqp.router.route({"queue": own} if own else {}, self.name)
        except QueueNotFound as error:
            named = _QUOTED.search(str(error))
            return None, named[1] if named else "?"
        except Exception:  # noqa: BLE001 - a router is code of the user's, which may want the arguments of a call
            return None, None
        queue = route.get("queue")
        if queue is None or isinstance(
            queue, Broadcast
        ):  # each worker has one of its own, with a name that nobody knows
            return None, None
        return str(getattr(queue, "name", queue)), None

    @property
    def queue(self) -> str | None:
        """The queue that it is routed to; None where that is an exchange alone, or where there is no such queue."""
        return self._route[0]

    @property
    def dead_queue(self) -> str | None:
        """The queue that its dead letters go to; None where it leaves none."""
        if self.buries is None:
            return None
        return self.buries.queue or (dead_queue(self.queue) if self.queue else None)

    @property
    def missing_queue(self) -> str | None:
        """The queue that it is routed to, where there is none of that name."""
        return self._route[1]

    @property
    def retries(self) -> int | None:
        """How many times it can be tried again, by its pattern or by Celery's own retry; None: without a limit."""
        if self.retry is not None:
            return self.retry.attempts - 1
        if not getattr(self.task, "autoretry_for", None):
            return 0
        limit = (getattr(self.task, "retry_kwargs", None) or {}).get("max_retries", self.task.max_retries)
        return None if limit is None else int(limit)

    def wait_behind(self, attempt: int) -> float | None:
        """The longest wait before the next attempt, in seconds; None where nobody can know."""
        if self.retry is not None:
            found = longest_wait(self.retry.wait, attempt)
            return None if found is None else float(math.ceil(found))
        backoff = getattr(self.task, "retry_backoff", False)
        if not backoff:
            own = (getattr(self.task, "retry_kwargs", None) or {}).get("countdown")
            return float(own if own is not None else self.task.default_retry_delay or 0)
        factor = max(1.0, float(backoff))
        return float(min(factor * 2 ** (attempt - 1), getattr(self.task, "retry_backoff_max", 600)))

    @cached_property
    def longest_wait(self) -> float | None:
        """The longest of its waits, in seconds; None where it has none, or nobody can know."""
        retries = self.retries
        own = float(getattr(self.task, "default_retry_delay", None) or 0)
        if not retries and self.retry is None and own not in (0.0, _DEFAULT_DELAY):
            return own  # said for the body's own self.retry()
        # Waits grow: the last is the longest. Where there is no limit, that of the hundredth attempt will do.
        last = 100 if retries is None else min(retries, 1000)
        found = [wait for wait in (self.wait_behind(1), self.wait_behind(last)) if wait is not None] if last else []
        within = self.retry.within if self.retry is not None else None
        longest = max(found, default=None)
        return longest if within is None or longest is None else min(longest, within.total_seconds())

    @cached_property
    def longest_span(self) -> float | None:
        """From the first attempt's start until the last one's, at the longest; None: nobody knows, or there is no end."""
        retries = self.retries
        if retries is None or not retries:
            return None
        run = self.hard_limit or 0.0
        within = self.retry.within.total_seconds() if self.retry is not None and self.retry.within else None
        span, before = run * retries, -1.0
        for attempt in range(1, retries + 1):
            wait = self.wait_behind(attempt)
            if wait is None:
                return within
            if wait == before or attempt > _STEADY:  # it grows no more
                span += wait * (retries - attempt + 1)
                break
            span, before = span + wait, wait
        return span if within is None else min(span, within)


def facts_of(app: Celery) -> tuple[TaskFacts, ...]:
    """The app's own tasks, by name; Celery's built-in ones are left out."""
    return tuple(TaskFacts(task, app) for name, task in sorted(app.tasks.items()) if not name.startswith("celery."))


def seconds(span: float) -> str:
    """A span as a person says it, with the seconds that a setting has."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if span >= 2 * size:
            return f"{span:g} s ({span / size:.3g} {unit})"
    return f"{span:g} s"
