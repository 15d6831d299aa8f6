"""Where keys are claimed: adapters of one Protocol, which one contract suite holds to it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..exceptions import ConfigurationError
from ..typing import Store
from ._memory import MemoryStore
from ._redis import RedisStore

if TYPE_CHECKING:
    from ._sql import SQLStore

__all__ = ["MemoryStore", "RedisStore", "SQLStore", "open_store"]

#: What a store of anybody's can do.
_STEPS = [name for name, step in vars(Store).items() if callable(step) and not name.startswith("_")]


def __getattr__(name: str) -> Any:
    """``SQLStore``, once it is asked for: SQLAlchemy is an extra, and takes its time to load."""
    if name != "SQLStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module("._sql", __name__).SQLStore
    except ImportError as error:
        raise ConfigurationError(
            "a store in SQL needs SQLAlchemy 2, which is not installed; expected: pip install 'celery-patterns[sql]'"
        ) from error


def open_store(store: str | Store) -> Store:
    """The store itself, or the one that a URL names.

    It is ``redis://``, ``rediss://``, ``unix://``, ``sentinel://``, ``postgresql://`` or ``sqlite://``.

    Raises:
        ConfigurationError: For any other URL, and for one whose store needs what is not installed.
    """
    if not isinstance(store, str):
        if isinstance(store, type):
            raise ConfigurationError(f"expected store to be a URL or a Store, got the class {store.__name__} itself")
        if isinstance(store, Store):
            return store
        raise ConfigurationError(
            f"expected store to be a URL or a Store, got a {type(store).__name__}, which has no {_missing(store)}"
        )
    scheme, is_url, _ = store.partition("://")
    if is_url and scheme in ("redis", "rediss", "unix", "sentinel"):
        return RedisStore(store)
    if is_url and scheme.partition("+")[0] in ("postgresql", "postgres", "sqlite"):
        sql: Store = __getattr__("SQLStore")(store)
        return sql
    # Only the scheme is shown: the rest may hold a password.
    got = f"one of scheme {scheme!r}" if is_url else "one without ://"
    raise ConfigurationError(
        f"expected store to be a redis://, rediss://, unix://, sentinel://, postgresql:// or sqlite:// URL, got {got}"
    )


def _missing(store: object) -> str:
    return ", ".join(name for name in _STEPS if not hasattr(store, name))
