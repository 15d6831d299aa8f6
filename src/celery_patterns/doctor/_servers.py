"""The servers, each asked in a thread of its own: whether the app can log in there, and how the server is set up."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from amqp.exceptions import AccessRefused, NotAllowed, NotFound
from celery.app.backends import by_url
from celery.exceptions import ImproperlyConfigured
from kombu.transport import get_transport_cls
from redis import ConnectionPool, Redis
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError, ResponseError

from .._equipment import equipment_of
from ._address import Address, addresses_of
from ._reach import Kind, Trouble, knock

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["QueueFacts", "RedisFacts", "Server", "ask_servers"]

#: kombu would try a hundred times, with pauses.
_ONCE: dict[str, Any] = {"max_retries": 1, "interval_start": 0, "reraise_as_library_errors": False}
#: Seconds that are left to the others when one server takes all of its own.
_SPARE = 0.5


@dataclass(frozen=True)
class RedisFacts:
    """How a Redis server is set up, as far as it tells.

    Attributes:
        release: Its version.
        policy: What it does when its memory is full.
        maxmemory: When that is, in bytes; 0: never.
        keeps: Whether it writes to disk what it is told; None where it does not tell.
        replicas: How many replicas follow it.
    """

    release: str
    policy: str
    maxmemory: int
    keeps: bool | None
    replicas: int


@dataclass(frozen=True)
class QueueFacts:
    """A queue of RabbitMQ's.

    Attributes:
        messages: How many wait.
        consumers: How many workers listen.
    """

    messages: int
    consumers: int


@dataclass(frozen=True)
class Server:
    """One server, and what was learned of it.

    Attributes:
        address: Where it is.
        trouble: Why it cannot be used; None where it can.
        redis: How it is set up, where it is a Redis.
        queues: The app's queues, where it is a RabbitMQ; None for one that is not there.
        lacks: What a store needs and has not.
    """

    address: Address
    trouble: Trouble | None = None
    redis: RedisFacts | None = None
    queues: Mapping[str, QueueFacts | None] = field(default_factory=dict)
    lacks: str | None = None


def ask_servers(app: Celery, queues: frozenset[str], timeout: float) -> tuple[Server, ...]:
    """Ask all of them at once.

    Args:
        app: The app.
        queues: The names of its queues.
        timeout: Seconds within which each must have answered.
    """
    addresses = list(addresses_of(app))
    answers: list[Server | None] = [None] * len(addresses)

    def ask(number: int, address: Address) -> None:
        answers[number] = _asked(app, address, queues, time.monotonic() + timeout)

    threads = [threading.Thread(target=ask, args=one, daemon=True) for one in enumerate(addresses)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout + _SPARE
    for thread in threads:
        # One that is over its time is left to itself: the system's own name service, for one, knows no time-out.
        thread.join(max(0.0, deadline - time.monotonic()))
    late = Trouble("silent", f"no answer within {timeout:g} s")
    return tuple(answer or Server(address, late) for address, answer in zip(addresses, tuple(answers), strict=True))


def _asked(app: Celery, address: Address, queues: frozenset[str], deadline: float) -> Server:
    missing = _missing_driver(app, address)
    if missing is not None:
        return Server(address, missing)
    if address.host and address.port:
        trouble = knock(address, deadline)
        if trouble is not None:
            return Server(address, trouble)
    log_in = _LOGINS.get((address.role, address.tongue))
    if log_in is None:
        return Server(address)
    try:
        return log_in(app, Server(address), queues, max(0.5, deadline - time.monotonic()))
    except Exception as error:  # noqa: BLE001 - whatever a driver raises is why it cannot be used
        return Server(address, _trouble(address, error))


def _missing_driver(app: Celery, address: Address) -> Trouble | None:
    """What kombu and Celery say of a scheme that they do not know, or whose package is not there."""
    try:
        if address.role == "broker":
            get_transport_cls(address.url.partition("://")[0])
        elif address.role == "result backend":
            by_url(address.url.partition("?")[0], app.loader)
    except (KeyError, ImportError, ImproperlyConfigured) as error:
        return Trouble(
            "driver", address.hushed(str(error.args[0] if error.args else error).strip("'").partition("\n")[0])
        )
    return None


def _trouble(address: Address, error: BaseException) -> Trouble:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    said = address.hushed(f"{type(error).__name__}: {error}".partition("\n")[0][:300])
    for one in chain:
        kind = _kind(one)
        if kind is not None:
            return Trouble(kind, said)
    return Trouble("other", said)


def _kind(error: BaseException) -> Kind | None:
    text = str(error).lower()
    if isinstance(error, ssl.SSLError):
        return "certificate"
    if isinstance(error, AccessRefused | AuthenticationError | AuthorizationError | NoPermissionError):
        return "credentials"
    if isinstance(error, NotAllowed):
        return "place"
    if isinstance(error, ResponseError):
        if "db index" in text:
            return "place"
        return "credentials" if text.startswith(("noauth", "wrongpass", "denied")) or "password" in text else None
    if isinstance(error, TimeoutError):
        return "silent"
    if isinstance(error, ImportError):
        return "driver"
    if type(error).__module__.startswith(("psycopg", "sqlalchemy")):
        return _kind_in_sql(text)
    return None


def _kind_in_sql(text: str) -> Kind | None:
    """PostgreSQL tells a client that could not connect nothing but a text."""
    if "password" in text or "authentication" in text or ("role" in text and "does not exist" in text):
        return "credentials"
    if "database" in text and "does not exist" in text:
        return "place"
    return "silent" if "timeout" in text else None


def _into_amqp(app: Celery, server: Server, queues: frozenset[str], left: float) -> Server:
    timeouts = {"read_timeout": left, "write_timeout": left}
    options = {**(app.conf.broker_transport_options or {}), **timeouts}
    with app.connection_for_write(server.address.url, connect_timeout=left, transport_options=options) as connection:
        connection.ensure_connection(**_ONCE)
        return replace(server, queues={name: _queue(connection, name) for name in sorted(queues)})


def _queue(connection: Any, name: str) -> QueueFacts | None:
    channel = connection.channel()
    try:
        found = channel.queue_declare(queue=name, passive=True)
    except NotFound:  # the broker has closed the channel by now
        return None
    else:
        return QueueFacts(found.message_count, found.consumer_count)
    finally:
        if channel.connection is not None:
            channel.close()


def _into_redis_broker(app: Celery, server: Server, _: frozenset[str], left: float) -> Server:
    timeouts = {"socket_timeout": left, "socket_connect_timeout": left}
    options = {**(app.conf.broker_transport_options or {}), **timeouts}
    url = app.conf.broker_write_url if server.address.scheme == "sentinel" else server.address.url
    with app.connection_for_write(url, transport_options=options) as connection:
        connection.ensure_connection(**_ONCE)
        return replace(server, redis=_redis(connection.channel().client))


def _into_redis_backend(app: Celery, server: Server, _: frozenset[str], left: float) -> Server:
    return replace(server, redis=_redis(_hasty(app.backend.client, left)))


def _into_redis_store(app: Celery, server: Server, _: frozenset[str], left: float) -> Server:
    store: Any = equipment_of(app).store
    return replace(server, redis=_redis(_hasty(store.client(), left)))


def _hasty(client: Any, left: float) -> Redis:
    """The same server, asked once and not for long."""
    pool = client.connection_pool
    if pool.connection_class.__name__.startswith("Sentinel"):
        return client  # type: ignore[no-any-return]
    asked = {**pool.connection_kwargs, "socket_timeout": left, "socket_connect_timeout": left}
    for name in ("retry", "retry_on_timeout", "retry_on_error"):
        asked.pop(name, None)
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **asked))


def _redis(client: Any) -> RedisFacts:
    client.ping()
    told: dict[str, Any] = client.info()
    keeps: bool | None = bool(told.get("aof_enabled"))
    if not keeps:
        try:
            keeps = bool(client.config_get("save").get("save"))
        except (RedisError, AttributeError):  # a server of somebody else's lets nobody look
            keeps = None
    return RedisFacts(
        release=str(told.get("redis_version", "?")),
        policy=str(told.get("maxmemory_policy", "noeviction")),
        maxmemory=int(told.get("maxmemory", 0)),
        keeps=keeps,
        replicas=int(told.get("connected_slaves", 0)),
    )


def _into_sql(app: Celery, server: Server, _: frozenset[str], left: float) -> Server:
    import sqlalchemy as sa  # noqa: PLC0415 - an extra
    from sqlalchemy.pool import NullPool  # noqa: PLC0415 - an extra

    url = sa.make_url(server.address.url)
    timeouts = {"connect_timeout": max(2, int(left))} if url.get_backend_name() in ("postgresql", "mysql") else {}
    engine = sa.create_engine(url, poolclass=NullPool, connect_args=timeouts)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        store: Any = equipment_of(app).store if server.address.role == "store" else None
        if store is not None and not sa.inspect(connection).has_table(store.table.name):
            return replace(server, lacks=store.table.name)
    return server


_LOGINS: dict[tuple[str, str], Callable[[Celery, Server, frozenset[str], float], Server]] = {
    ("broker", "amqp"): _into_amqp,
    ("broker", "redis"): _into_redis_broker,
    ("result backend", "redis"): _into_redis_backend,
    ("result backend", "sql"): _into_sql,
    ("store", "redis"): _into_redis_store,
    ("store", "sql"): _into_sql,
}
