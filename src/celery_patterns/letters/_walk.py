"""Walking through a dead-letter queue: on which shelf it stands, and which of its entries are meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .._queues import fitting
from .._x_death import is_nameless
from ..exceptions import ConfigurationError
from ._entry import Entry, Look, Shelf
from ._filter import Filter
from ._ledger import Ledger
from ._rabbitmq import OnRabbitMQ
from ._redis import OnRedis

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Walk", "ledger_in"]

_SHELVES: dict[str, type[OnRabbitMQ | OnRedis]] = {"amqp": OnRabbitMQ, "redis": OnRedis}


class Walk:
    """Letters of one queue.

    Args:
        app: The app on whose broker the queue is.
        queue: The queue's name.
        chosen: Which of them; None for none at all.
        look: Told of each message that is looked at, and of how many there are.

    Raises:
        ConfigurationError: When the broker is neither RabbitMQ nor Redis.
    """

    def __init__(
        self,
        app: Celery,
        queue: str,
        chosen: Filter | None = Filter(),  # noqa: B008 - frozen
        look: Look = lambda _looked, _standing: None,
    ) -> None:
        self.app = app
        self.queue = fitting(queue)
        self.chosen = chosen
        self.look = look
        kind = _kind_of(app)
        if kind not in _SHELVES:
            raise ConfigurationError(f"dead_letters() reads RabbitMQ and Redis brokers; this app's broker is {kind}")
        self.kind = kind

    def only(self, **words: Any) -> Walk:
        """The same walk with other words in its filter, which nobody checks."""
        chosen = None if self.chosen is None else replace(self.chosen, **words)
        return Walk(self.app, self.queue, chosen, self.look)

    def open(self, stack: ExitStack) -> Shelf:
        """The shelf, open for as long as the stack is."""
        return stack.enter_context(closing(_SHELVES[self.kind](self.app, self.queue, self.look)))

    def entries(self, shelf: Shelf, ledger: Ledger, *, copies: bool = False) -> Iterator[Entry]:
        """The chosen letters' entries; with ``copies`` also the second entry of a death, and each again after trouble.

        Of equal ones without a name each is a letter. After trouble it cannot be told which of them were dealt with: no
        equal of one that was met is shown again.
        """
        if self.chosen is None:
            return
        limit, count = self.chosen.limit, 0
        walk = shelf.walk()
        try:
            for entry in walk:
                if not self.chosen.takes(entry.letter):
                    continue
                met, nameless = ledger.get(entry.letter.id), is_nameless(entry.letter)
                if nameless and met not in (None, str(entry.round)):
                    continue
                known = met is not None and not nameless
                if not known and limit is not None and count >= limit:
                    if not copies:
                        return
                    continue
                if copies or not known:
                    yield entry
                if not known and not entry.again:
                    ledger.put(entry.letter.id, str(entry.round))
                    count += 1
                    if not copies and count == limit:
                        return
        finally:
            walk.close()  # type: ignore[attr-defined]


def _kind_of(app: Celery) -> str:
    try:
        with app.connection_for_write() as connection:
            return str(connection.transport.driver_type)
    except ImportError as error:
        return f"of a kind that is not installed: {error}"
    except KeyError:
        return "none that kombu knows"
    except ValueError:  # whose text may quote a password
        raise ConfigurationError(
            "the app's broker_url cannot be read; expected amqp://… or redis://…, in which a password's / # @ and : are "
            "written %2F, %23, %40 and %3A"
        ) from None


def ledger_in(stack: ExitStack) -> Ledger:
    """A new ledger, kept for as long as the stack is open."""
    return stack.enter_context(closing(Ledger()))
