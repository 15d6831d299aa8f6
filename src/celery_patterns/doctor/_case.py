"""All that is known of one app, looked up once and then only read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .._equipment import equipment_of
from ._address import Address, addresses_of
from ._finding import UnknownError
from ._tasks import TaskFacts, facts_of

if TYPE_CHECKING:
    from celery import Celery

    from ..typing import Store
    from ._servers import Server
    from ._source import Module
    from ._workers import Worker

__all__ = ["VISIBILITY", "Case"]

#: kombu's own visibility timeout on Redis, in seconds.
VISIBILITY = 3600.0


@dataclass(frozen=True)
class Case:
    """One app, as it is configured in the end, and what was learned by asking.

    Attributes:
        app: The app.
        asked: The servers that were asked, or why they were not.
        answered: What the workers answered, or why they were not asked.
        modules: The source that was read, or why it was not.
    """

    app: Celery
    asked: tuple[Server, ...] | str
    answered: tuple[Worker, ...] | str
    modules: tuple[Module, ...] | str

    @property
    def conf(self) -> Any:
        return self.app.conf

    @cached_property
    def tasks(self) -> tuple[TaskFacts, ...]:
        return facts_of(self.app)

    @cached_property
    def by_name(self) -> dict[str, TaskFacts]:
        return {task.name: task for task in self.tasks}

    @cached_property
    def addresses(self) -> tuple[Address, ...]:
        """Where the app's servers are, asked or not."""
        return tuple(addresses_of(self.app))

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
        return self.conf.broker_transport_options or {}

    @cached_property
    def visibility_timeout(self) -> float | None:
        """Seconds after which Redis gives a message out again that nobody acknowledged; None on other brokers."""
        if self.transport != "redis":
            return None
        return float(self.transport_options.get("visibility_timeout", VISIBILITY))

    @property
    def visibility_line(self) -> str:
        """Where it is said."""
        if "visibility_timeout" in self.transport_options:
            return f'broker_transport_options["visibility_timeout"]={self.visibility_timeout:g}'
        return f"the visibility timeout, {self.visibility_timeout:g} s by default"

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

    @property
    def servers(self) -> tuple[Server, ...]:
        if isinstance(self.asked, str):
            raise UnknownError(self.asked)
        return self.asked

    @property
    def workers(self) -> tuple[Worker, ...]:
        if isinstance(self.answered, str):
            raise UnknownError(self.answered)
        return self.answered

    @property
    def source(self) -> tuple[Module, ...]:
        if isinstance(self.modules, str):
            raise UnknownError(self.modules)
        return self.modules
