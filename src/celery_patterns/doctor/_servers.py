"""The servers, each asked in a thread of its own: whether the app can log in there, and how the server is set up."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amqp import Message
from amqp.exceptions import AccessRefused, AMQPError, NotAllowed
from redis import ConnectionPool, Redis
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError, ResponseError
from redis.sentinel import MasterNotFoundError

from .._equipment import equipment_of
from ._address import Address, Kind, Trouble, addresses_of
from ._reach import knock

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["QueueFacts", "RedisFacts", "Server", "ask_servers"]

#: kombu would try a hundred times, with pauses.
_ONCE: dict[str, Any] = {"max_retries": 1, "interval_start": 0, "reraise_as_library_errors": False}
#: Seconds that are left to the others when one server takes all of its own.
_SPARE = 0.5
#: Where a message goes that nobody is to get: no queue has this name, so RabbitMQ drops it.
_NOWHERE = "celery-patterns.doctor.nowhere"
#: The longest text of a driver's that is shown.
_LONGEST = 300


@dataclass(frozen=True)
class RedisFacts:
    """How a Redis server is set up, as far as it tells.

    Attributes:
        policy: What it does when its memory is full.
        maxmemory: When that is, in bytes; 0: never.
        keeps: Whether it writes to disk what it is told; None where it does not tell.
        replicas: How many replicas follow it.
        listening: How many connections of a broker's hear what is sent to all; None where it does not tell.
    """

    policy: str
    maxmemory: int
    keeps: bool | None
    replicas: int
    listening: int | None = None


@dataclass(frozen=True)
class QueueFacts:
    """A queue of RabbitMQ's.

    Attributes:
        consumers: How many workers listen.
    """

    consumers: int


@dataclass(frozen=True)
class Server:
    """One server, and what was learned of it.

    Attributes:
        address: Where it is.
        trouble: Why it cannot be used; None where it can.
        redis: How it is set up, where it is a Redis that tells.
        queues: The app's queues that are there, where it is a RabbitMQ.
        lacks: What a store needs and has not.
        unseen: What could not be looked at, and why.
    """

    address: Address
    trouble: Trouble | None = None
    redis: RedisFacts | None = None
    queues: Mapping[str, QueueFacts] = field(default_factory=dict)
    lacks: str | None = None
    unseen: str | None = None


class _BlockedError(Exception):
    """RabbitMQ reads nothing more of a connection that sends messages."""


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
    if address.trouble is not None:
        return Server(address, address.trouble)
    log_in = _LOGINS.get((address.role, address.tongue))
    try:
        if address.host and address.port:
            trouble = knock(address, deadline)
            if trouble is not None:
                return Server(address, trouble)
        if log_in is None:
            return Server(address, unseen=f"the {address.role}: how to log in at {address.scheme}:// is not known here")
        return log_in(app, Server(address), queues, max(0.5, deadline - time.monotonic()))
    except Exception as error:  # noqa: BLE001 - whatever a driver raises is why it cannot be used
        return Server(address, _trouble(address, error))


def _trouble(address: Address, error: BaseException) -> Trouble:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    line = " ".join(f"{type(error).__name__}: {str(error).strip()}".partition(" : <")[0].split())
    said = address.hushed(line)[:_LONGEST].rstrip(": ")
    if not address.host and any(isinstance(one, FileNotFoundError | ConnectionRefusedError) for one in chain):
        return Trouble("refused", said)  # a socket's path
    kinds: list[Kind] = [kind for kind in map(_kind, chain) if kind is not None]
    return Trouble(kinds[0] if kinds else "other", said)


def _kind(error: BaseException) -> Kind | None:  # noqa: C901 - one line for each thing that drivers say
    text = str(error).lower()
    if isinstance(error, ssl.SSLError | FileNotFoundError) or "ssl_cert_reqs" in text or "cert_reqs" in text:
        return "certificate"
    if isinstance(error, NoPermissionError):
        return "other"  # the login was taken
    if isinstance(error, AccessRefused | AuthenticationError | AuthorizationError):
        return "credentials"
    if isinstance(error, NotAllowed):
        return "other" if "limit" in text else "place"
    if isinstance(error, MasterNotFoundError) or "master_name" in text or "no master found" in text:
        return "place"
    if isinstance(error, ResponseError):
        if "db index" in text:
            return "place"
        return "credentials" if text.startswith(("noauth", "wrongpass", "denied")) or "password" in text else None
    if isinstance(error, TimeoutError):
        return "silent"
    if isinstance(error, ImportError):
        return "driver"
    if type(error).__module__.startswith("psycopg"):
        return _kind_in_postgres(text)
    return None


def _kind_in_postgres(text: str) -> Kind | None:
    """PostgreSQL tells a client that could not connect nothing but a text, in which a name may be anything."""
    for kind, signs in _POSTGRES:
        if any(sign in text for sign in signs):
            return kind
    return None


_POSTGRES: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("tls", ("does not support ssl",)),
    ("protocol", ("invalid response to ssl",)),
    ("credentials", ("authentication failed", "pg_hba.conf", "no password supplied", "not permitted to log in")),
    ("place", ("permission denied for database", "not currently accepting connections")),
    ("credentials", ('role "',)),
    ("place", ('database "',)),
    ("silent", ("timeout",)),
)


def _into_amqp(app: Celery, server: Server, queues: frozenset[str], left: float) -> Server:
    ours = {"read_timeout": left, "write_timeout": left, "confirm_publish": True, "on_blocked": _raise_blocked}
    options = {**(app.conf.broker_transport_options or {}), **ours}
    url = server.address.url or None
    with app.connection_for_write(url, connect_timeout=left, transport_options=options) as connection:
        connection.ensure_connection(**_ONCE)
        found = {name: _queue(connection, name) for name in sorted(queues)}
        server = replace(server, queues={name: facts for name, facts in found.items() if facts is not None})
        try:
            _send_nowhere(connection, left)
        except _BlockedError:
            connection.collect()  # to say goodbye would wait for an answer
            said = "it takes no messages: an alarm is on, for want of memory or of room on its disk"
            return replace(server, trouble=Trouble("blocked", said))
        return server


def _raise_blocked(_: str) -> None:
    raise _BlockedError


def _send_nowhere(connection: Any, left: float) -> None:
    """Send a message to no queue: that a server takes none it tells those only that send one."""
    channel = connection.channel()
    try:
        channel.basic_publish(Message(""), exchange="", routing_key=_NOWHERE, confirm_timeout=left)
    except AMQPError:  # an account that may not send there; the broker has closed the channel by now
        return
    channel.close()


def _queue(connection: Any, name: str) -> QueueFacts | None:
    """The queue; None where there is none, or it cannot be looked at."""
    channel = connection.channel()
    try:
        found = channel.queue_declare(queue=name, passive=True)
    except AMQPError:  # there is none, or it is somebody's own; the broker has closed the channel by now
        return None
    else:
        return QueueFacts(found.consumer_count)
    finally:
        if channel.connection is not None:
            channel.close()


def _into_redis_broker(app: Celery, server: Server, _: frozenset[str], left: float) -> Server:
    timeouts = {"socket_timeout": left, "socket_connect_timeout": left}
    options = {**(app.conf.broker_transport_options or {}), **timeouts}
    url = app.conf.broker_write_url if server.address.scheme == "sentinel" else server.address.url or None
    with app.connection_for_write(url, transport_options=options) as connection:
        connection.ensure_connection(**_ONCE)
        return _looked_at(server, connection.channel().client)


def _into_redis_backend(app: Celery, server: Server, _: frozenset[str], left: float) -> Server:
    return _looked_at(server, _hasty(app.backend.client, left))


def _into_redis_store(app: Celery, server: Server, _: frozenset[str], left: float) -> Server:
    store: Any = equipment_of(app).store
    return _looked_at(server, _hasty(store.client(), left))


def _hasty(client: Any, left: float) -> Redis:
    """The same server, asked once and not for long."""
    pool = client.connection_pool
    if pool.connection_class.__name__.startswith("Sentinel"):
        return client  # type: ignore[no-any-return]
    asked = {**pool.connection_kwargs, "socket_timeout": left, "socket_connect_timeout": left}
    for name in ("retry", "retry_on_timeout", "retry_on_error"):
        asked.pop(name, None)
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **asked))


def _looked_at(server: Server, client: Any) -> Server:
    try:
        client.ping()
        told: dict[str, Any] = client.info()
    except NoPermissionError:  # an account that may do what tasks need, and no more
        return replace(
            server, unseen=f"how the {server.address.role} at {server.address.shown} is set up: INFO is not allowed"
        )
    role = _role(told)
    if role is not None:
        return replace(server, trouble=Trouble("role", f"the server is {role}"))
    keeps: bool | None = bool(told.get("aof_enabled"))
    if not keeps:
        try:
            keeps = bool(client.config_get("save").get("save"))
        except (RedisError, AttributeError):  # a server of somebody else's lets nobody look
            keeps = None
    facts = RedisFacts(
        policy=str(told.get("maxmemory_policy", "noeviction")),
        maxmemory=int(told.get("maxmemory", 0)),
        keeps=keeps,
        replicas=int(told.get("connected_slaves", 0)),
        listening=_listening(client, server.address) if server.address.role == "broker" else None,
    )
    return replace(server, redis=facts)


def _listening(client: Any, address: Address) -> int | None:
    try:
        found = client.client_list(_type="pubsub")
    except (RedisError, AttributeError, TypeError):  # an account, or a server, that lets nobody look
        return None
    return sum(str(one.get("db")) == address.place for one in found)


def _role(told: Mapping[str, Any]) -> str | None:
    if told.get("redis_mode") == "sentinel":
        return "a Sentinel, which knows where a Redis is and is none"
    if told.get("cluster_enabled"):
        return "a part of a Redis Cluster"
    return "a replica, which only reads" if told.get("role") == "slave" else None


def _into_sql(app: Celery, server: Server, _: frozenset[str], left: float) -> Server:
    import sqlalchemy as sa  # noqa: PLC0415 - an extra
    from sqlalchemy.pool import NullPool  # noqa: PLC0415 - an extra

    url = sa.make_url(server.address.url)
    store: Any = equipment_of(app).store if server.address.role == "store" else None
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        # To look at it would make it.
        return replace(server, lacks=store.table.name) if store is not None else server
    given = {} if store is not None else dict(app.conf.database_engine_options or {})
    arguments = dict(given.pop("connect_args", None) or {})
    if url.drivername in ("postgresql", "postgresql+psycopg", "postgresql+psycopg2"):
        arguments.setdefault("connect_timeout", max(2, int(left)))
    engine = sa.create_engine(url, poolclass=NullPool, connect_args=arguments)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
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
