"""All that is known of one app, looked up once and then only read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .._equipment import equipment_of
from ..worker import refusal
from ._address import Address, addresses_of
from ._finding import UnknownError
from ._kinds import malformed
from ._tasks import TaskFacts, facts_of

if TYPE_CHECKING:
    from celery import Celery

    from ..typing import Store
    from ._module import Module
    from ._servers import QueueFacts, Server
    from ._workers import Worker

__all__ = ["Case", "Entry"]

#: kombu's own visibility timeout on Redis, in seconds.
_VISIBILITY = 3600.0


@dataclass(frozen=True)
class Entry:
    """What beat sends.

    Attributes:
        name: The entry's.
        task: The task's name.
        args: Its arguments.
        kwargs: Its named arguments.
        queue: The queue that it is sent to, where the entry says one.
    """

    name: str
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    queue: str | None


@dataclass(frozen=True)
class Case:
    """One app, as it is configured in the end, and what was learned by asking.

    Attributes:
        app: The app.
        asked: The servers that were asked, or why they were not.
        answered: What the workers answered, or why they were not asked.
        modules: The source that was read, or why it was not.
        letters: How many letters stand in each of the app's dead-letter queues, or why they were not counted.
    """

    app: Celery
    asked: tuple[Server, ...] | str
    answered: tuple[Worker, ...] | str
    modules: tuple[Module, ...] | str
    letters: Mapping[str, int] | str

    @property
    def conf(self) -> Any:
        return self.app.conf

    @cached_property
    def tasks(self) -> tuple[TaskFacts, ...]:
        return facts_of(self.app)

    @cached_property
    def by_name(self) -> dict[str, TaskFacts]:
        return {task.name: task for task in self.tasks}

    def alike(self, name: str) -> str | None:
        """The task that was meant by a name: of the same last part, or of almost the same name."""
        same = [task for task in self.by_name if task.rpartition(".")[2] == name.rpartition(".")[2]]
        found = same or difflib.get_close_matches(name, list(self.by_name), 1)
        return found[0] if found else None

    @cached_property
    def addresses(self) -> tuple[Address, ...]:
        """Where the app's servers are, asked or not."""
        return tuple(addresses_of(self.app))

    @cached_property
    def malformed(self) -> tuple[tuple[str, str, str], ...]:
        """Settings of a wrong kind: where, what it is, and what was expected."""
        return tuple(malformed(self.app))

    @cached_property
    def keeps_results(self) -> bool:
        """Whether results are kept anywhere."""
        backend = self.conf.result_backend
        return bool(backend) and not (isinstance(backend, str) and backend.startswith("disabled"))

    def spelled(self, setting: str) -> str:
        """A setting as this app writes it: under Django with its prefix."""
        prefix = getattr(self.conf, "prefix", None)
        return f"{prefix}{setting.upper()}" if prefix else setting

    def line(self, setting: str, value: str) -> str:
        """The line that sets it: under Django in its settings, else where the app is made."""
        before = "" if getattr(self.conf, "prefix", None) else "app.conf."
        return f"{before}{self.spelled(setting)} = {value}"

    def longer_visibility(self, span: float) -> str:
        """The line that lets Redis wait for longer than this."""
        return f"{self.option_line('visibility_timeout', int(span * 2))} Do so in all processes of the app."

    def option_line(self, option: str, value: Any) -> str:
        """How to set one of the transport's options, beside those that are set."""
        others = any(name != option for name in self.transport_options)
        if others:
            return f'In {self.spelled("broker_transport_options")} set "{option}": {value}, beside what stands there.'
        only = f'{{"{option}": {value}}}'
        return f"Set {self.line('broker_transport_options', only)}."

    @property
    def store(self) -> Store | None:
        equipment = equipment_of(self.app)
        return equipment.store if equipment.has_store else None

    @cached_property
    def transport(self) -> str:
        """What the broker speaks: ``amqp``, ``redis``, ``memory``, ``sqs`` and so on."""
        address = self.addresses[0]
        return address.scheme if address.tongue == "other" else address.tongue

    @property
    def transport_options(self) -> dict[str, Any]:
        found = self.conf.broker_transport_options
        return dict(found) if isinstance(found, Mapping) else {}

    @cached_property
    def visibility_timeout(self) -> float | None:
        """Seconds after which Redis gives a message out again that nobody acknowledged; None on other brokers."""
        if self.transport != "redis":
            return None
        said = self.transport_options.get("visibility_timeout")
        try:
            return float(said) if isinstance(said, int | float | str) and said else _VISIBILITY
        except ValueError:
            return _VISIBILITY

    @property
    def visibility_line(self) -> str:
        """Where it is said."""
        if self.transport_options.get("visibility_timeout"):
            return f'broker_transport_options["visibility_timeout"] is {self.visibility_timeout:g}'
        return f"the visibility timeout is {self.visibility_timeout:g} s"

    def queue_of(self, name: str | None) -> Any:
        """The queue of this name, as the app declares it; None where it does not."""
        return None if name is None else self.app.amqp.queues.get(name)

    def is_quorum(self, queue: Any) -> bool:
        return bool((queue.queue_arguments or {}).get("x-queue-type") == "quorum")

    @cached_property
    def delays_natively(self) -> bool:
        """Whether Celery lets RabbitMQ itself hold what waits."""
        if self.transport != "amqp":
            return False
        queues = list(self.app.amqp.queues.values())
        direct = [one for one in queues if one.exchange is None or one.exchange.type == "direct"]
        return any(self.is_quorum(one) for one in queues) and not direct

    @cached_property
    def written(self) -> dict[str, str]:
        """The names of all tasks, by where they are written: ``shop.tasks.pay``."""
        read = {f"{one.name}.{task.function.name}": task.name for one in self.source for task in one.tasks}
        return {**read, **{f"{one.task.__module__}.{one.task.__name__}": one.name for one in self.tasks}}

    @cached_property
    def teaches(self) -> bool:
        """Whether kombu is taught somewhere to carry what it does not know by itself."""
        calls = (call.func for module in self.source for call in module.calls)
        return any(getattr(one, "attr", getattr(one, "id", "")) == "register_type" for one in calls)

    @cached_property
    def schedule(self) -> tuple[Entry, ...]:
        """What beat sends, as far as it stands in the settings."""
        found = self.conf.beat_schedule
        return tuple(_entries(found)) if isinstance(found, Mapping) else ()

    @cached_property
    def queues(self) -> dict[str, list[str]]:
        """The queues that the app's tasks go to, each with the names of those that do."""
        found: dict[str, list[str]] = {}
        for task in self.tasks:
            if task.queue is not None:
                found.setdefault(task.queue, []).append(task.name)
        for entry in self.schedule:
            if entry.queue is not None:
                found.setdefault(entry.queue, []).append(f"beat_schedule[{entry.name!r}]")
        return found

    @cached_property
    def mixed(self) -> dict[str, str]:
        """Queues that tasks and dead letters go to, each with a task that buries there: no worker starts on one."""
        found: dict[str, str] = {}
        for task in self.tasks:
            if task.dead_queue in self.queues:
                found.setdefault(str(task.dead_queue), task.name)
        return found

    @cached_property
    def refused(self) -> dict[str, str]:
        """Tasks that no worker starts with: why, and behind the semicolon what to do."""
        known = ((task.name, refusal(self.app, task.task)) for task in self.tasks)
        return {name: why for name, why in known if why is not None}

    @property
    def queues_there(self) -> Mapping[str, QueueFacts]:
        """The app's queues that RabbitMQ has; none where it was not asked."""
        asked = () if isinstance(self.asked, str) else self.asked
        return next((one.queues for one in asked if one.queues), {})

    @property
    def servers(self) -> tuple[Server, ...]:
        if isinstance(self.asked, str):
            raise UnknownError(self.asked)
        return self.asked

    @cached_property
    def workers(self) -> tuple[Worker, ...]:
        """Those of this app; others may use the same broker."""
        if isinstance(self.answered, str):
            raise UnknownError(self.answered)
        if not self.by_name:
            return self.answered
        return tuple(one for one in self.answered if self._is_ours(one))

    @cached_property
    def hearers(self) -> tuple[Worker, ...]:
        """Those that listen to a queue of the app's: what they are set to matters to its tasks."""
        return tuple(one for one in self.workers if one.queues is None or not self.queues.keys().isdisjoint(one.queues))

    def _is_ours(self, worker: Worker) -> bool:
        knows = worker.tasks is None or not self.by_name.keys().isdisjoint(worker.tasks)
        hears = worker.queues is None or not self.queues.keys().isdisjoint(worker.queues)
        return knows or hears

    @property
    def source(self) -> tuple[Module, ...]:
        if isinstance(self.modules, str):
            raise UnknownError(self.modules)
        return self.modules


def _entries(schedule: Mapping[Any, Any]) -> Iterator[Entry]:
    for name, entry in sorted(schedule.items(), key=lambda one: str(one[0])):
        said = entry if isinstance(entry, Mapping) else vars(entry) if hasattr(entry, "__dict__") else {}
        task, args, kwargs = said.get("task"), said.get("args") or (), said.get("kwargs") or {}
        options = said.get("options") or {}
        queue = options.get("queue") if isinstance(options, Mapping) else None
        if isinstance(task, str) and isinstance(args, Iterable) and isinstance(kwargs, Mapping):
            yield Entry(
                str(name),
                task,
                tuple(args),
                dict(kwargs),
                None if queue is None else str(getattr(queue, "name", queue)),
            )
