"""What an app was equipped with. It hangs on the app: two apps in one process share nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._publish import Publisher
from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

    from .typing import Store

__all__ = ["EQUIPMENT", "Equipment", "equipment_of"]

#: Where it hangs.
EQUIPMENT = "_celery_patterns"


class Equipment:
    """An app's store and its publisher.

    Attributes:
        publisher: Publishes with confirmation to the app's broker.
        recorder: Writes the letters of a worker's main process; None elsewhere.
    """

    def __init__(self, app: Celery) -> None:
        self.publisher = Publisher(app)
        self.recorder: Any = None
        self._store: Store | None = None

    @property
    def has_store(self) -> bool:
        return self._store is not None

    @property
    def store(self) -> Store:
        """The app's store.

        Raises:
            ConfigurationError: When the app has none.
        """
        if self._store is None:
            raise ConfigurationError(
                'this needs a store and the app has none; expected equip(app, store="redis://…") or '
                'use_store(app, "redis://…") where the app is made',
            )
        return self._store

    @store.setter
    def store(self, store: Store) -> None:
        self._store = store


def equipment_of(app: Celery) -> Equipment:
    """What the app was equipped with; made on first use."""
    found = app.__dict__.get(EQUIPMENT)
    if not isinstance(found, Equipment):
        found = Equipment(app)
        setattr(app, EQUIPMENT, found)
    return found
