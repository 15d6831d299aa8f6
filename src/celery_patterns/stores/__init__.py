"""Where keys are claimed: adapters of one Protocol, which one contract suite holds to it."""

from __future__ import annotations

from ..exceptions import ConfigurationError
from ..typing import Store
from ._memory import MemoryStore
from ._redis import RedisStore

__all__ = ["MemoryStore", "RedisStore", "open_store"]

#: What a store of anybody's can do.
_STEPS = [name for name, step in vars(Store).items() if callable(step) and not name.startswith("_")]


def open_store(store: str | Store) -> Store:
    """The store itself, or the one a URL names: ``redis://``, ``rediss://`` or ``unix://``.

    Raises:
        ConfigurationError: For any other URL.
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
    if is_url and scheme in ("redis", "rediss", "unix"):
        return RedisStore(store)
    # Only the scheme is shown: the rest may hold a password.
    got = f"one of scheme {scheme!r}" if is_url else "one without ://"
    raise ConfigurationError(f"expected store to be a redis://, rediss:// or unix:// URL, got {got}")


def _missing(store: object) -> str:
    return ", ".join(name for name in _STEPS if not hasattr(store, name))
