"""How the server is reached: by its address or through Sentinels; and asked again when it was away."""

from __future__ import annotations

import functools
import os
import re
import time
from collections import deque
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import ConnectionPool, Redis
from redis.exceptions import AuthenticationError, NoScriptError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.sentinel import Sentinel, SentinelConnectionPool

from ...exceptions import ConfigurationError, StoreUnavailable
from ._scripts import SCRIPTS, packed

__all__ = ["Server"]

_SENTINELS = "sentinel://"
#: For how many milliseconds replicas are waited for; less than a connection waits for an answer.
_CONFIRMED_WITHIN = 1000


class Server:
    """A server, a few connections to it for each process, made when they are first needed.

    Args:
        url: See :class:`RedisStore`.
        patience: For how many seconds a step is tried again.
        replicas: How many replicas must have what a step wrote.
        touched: The name of a key that is written to know that.

    Raises:
        ConfigurationError: When the URL cannot be read.
    """

    def __init__(self, url: str, patience: float, replicas: int, touched: str) -> None:
        self._patience, self._replicas = patience, replicas
        self._confirm = (
            b"*3\r\n" + packed(("SET", touched, 1)) + b"*3\r\n" + packed(("WAIT", replicas, _CONFIRMED_WITHIN))
        )
        try:
            self._pool, self._where = _pool_of(url)
            # The steps use redis-py's connections alone: its pool would count those that we let go.
            self._connection = functools.partial(self._pool.connection_class, **self._pool.connection_kwargs)
            self._connection()  # connects nothing, and refuses an option that it does not know
        except (ValueError, TypeError, RedisError) as error:
            # Of its text only an option's name is shown, which stands in quotes: it may quote a part of the password.
            option = "password=" not in url and re.search(r"keyword argument ('\w+')", str(error))
            why = (
                f"the option {option[1]}"
                if option
                else error
                if isinstance(error, _UnreadableError)
                else type(error).__name__
            )
            raise ConfigurationError(
                "expected the store's URL to be redis://host:port/db, or sentinel://host:port,host:port/service, with "
                f"options that redis-py knows; it cannot read this one: {why}"
            ) from None
        self._pid, self._free = os.getpid(), deque[Any]()

    def run(self, name: str, key: str, *args: Any) -> Any:
        """Run a script, which the same owner may ask for again."""
        script, rest = SCRIPTS[name], packed((key, *args))
        count = b"*%d\r\n" % (len(args) + 4)  # the command, the script, the number of keys, and the key
        try:
            return self._ask(count + script.known + rest)
        except NoScriptError:
            return self._ask(count + script.unknown + rest)

    def delete(self, key: str) -> None:
        self._ask(b"*2\r\n" + packed(("DEL", key)))

    def client(self) -> Redis:
        """redis-py's own, for what is no step; to be closed."""
        return Redis(connection_pool=self._pool)

    def away(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(f"redis did not answer at {self._where}: {_said(error)}")

    def refused(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(f"redis refused at {self._where}: {_said(error)}")

    def _ask(self, question: bytes) -> Any:
        deadline = time.monotonic() + self._patience
        pause = 0.0
        while True:
            connection = self._take()
            try:
                answer = self._asked(connection, question)
            except NoScriptError:
                self._free.append(connection)
                raise
            except AuthenticationError as error:  # a kind of ConnectionError, which no second try cures
                connection.disconnect()
                raise self.refused(error) from error
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                connection.disconnect()
                self._free.clear()  # the others were opened to the same server, which hung up
                if time.monotonic() + pause > deadline:
                    raise self.away(error) from error
            except RedisError as error:
                connection.disconnect()
                raise self.refused(error) from error
            except BaseException:
                # A time limit may strike between question and answer: the answer must not become the next question's.
                connection.disconnect()
                raise
            else:
                self._free.append(connection)
                return answer
            time.sleep(pause)
            pause = min(max(pause * 2, 0.05), 0.5)

    def _asked(self, connection: Any, question: bytes) -> Any:
        connection.connect()  # where it is not yet: a connection to a service asks its Sentinels only here
        if not self._replicas:
            connection.send_packed_command([question])
            return connection.read_response()
        # Behind the step, a write of this connection's own, which WAIT then waits for: a step that is asked again writes
        # nothing.
        connection.send_packed_command([question, self._confirm])
        refused, answer = None, None
        try:
            answer = connection.read_response()
        except NoScriptError as error:
            refused = error
        connection.read_response()
        confirmed = connection.read_response()
        if refused is not None:
            raise refused
        if confirmed < self._replicas:
            self._free.append(connection)
            raise StoreUnavailable(f"{confirmed} of {self._replicas} replicas have what was written")
        return answer

    def _take(self) -> Any:
        # redis-py's connection without its client: a tenth more tasks a second. As many are kept as are used at once, so
        # threads and greenlets share them. A forked child must not speak on its parent's sockets.
        if self._pid != os.getpid():
            self._free, self._pid = deque(), os.getpid()  # in this order: another thread looks at the id first
        try:
            return self._free.pop()
        except IndexError:
            return self._connection()


def _said(error: Exception) -> str:
    """In a line: behind a colon, redis-py's text may show a whole client."""
    return f"{type(error).__name__}: {error}".partition("\n")[0].partition(" : <")[0][:200]


class _UnreadableError(ValueError):
    """What is wrong with a URL, in words that quote nothing of it."""


def _pool_of(url: str) -> tuple[ConnectionPool, str]:
    """A pool that knows how to connect, and where to; a service's primary is asked of its Sentinels at each connection."""
    address, hosts, service = url, "", ""
    if url.startswith(_SENTINELS):
        hosts, service, address = _read_sentinels(url)
    _expect_plain(address)
    pool = ConnectionPool.from_url(address)
    given = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0, **pool.connection_kwargs, "decode_responses": False}
    if service:
        given = {name: value for name, value in given.items() if name not in ("host", "port")}
        asked = {name: given[name] for name in ("socket_timeout", "socket_connect_timeout")}
        watched = Sentinel([_address(one) for one in hosts.split(",")], sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
        pool = SentinelConnectionPool(service, watched, **given)  # type: ignore[no-untyped-call]
        return pool, f"the service {service!r} of {hosts}"
    pool.connection_kwargs = given
    host = str(given.get("host", "localhost"))
    at = given.get("path") or f"{f'[{host}]' if ':' in host else host}:{given.get('port', 6379)}"
    return pool, f"{at}, database {given.get('db') or 0}"


def _expect_plain(url: str) -> None:
    """Refuse what redis-py would read as another password, host or database than was meant."""
    parts = urlsplit(url)
    is_path = parts.scheme == "unix"
    cut_off = parts.netloc and "@" not in parts.netloc if is_path else "@" in parts.path
    if cut_off or parts.fragment or any("@" in piece and "=" not in piece for piece in parts.query.split("&")):
        raise _UnreadableError(
            "what is special in its user, password or path is to be percent-encoded: @ as %40, # as %23, / as %2F"
        )
    database = unquote(parts.path).strip("/ ")
    if database and not is_path and not database.isdecimal():
        raise _UnreadableError("its database is no number")


def _address(one: str) -> tuple[str, int]:
    host, colon, port = one.rpartition(":")
    return (host, int(port)) if colon else (one, 26379)


def _read_sentinels(url: str) -> tuple[str, str, str]:
    """The Sentinels, the service that they watch, and what else the URL says, as the URL of a server."""
    rest, mark, options = url.removeprefix(_SENTINELS).partition("?")
    hosts, _, path = rest.partition("/")
    login, at, hosts = hosts.rpartition("@")
    service, _, database = path.partition("/")
    if not hosts or not service or "@" in service:
        raise _UnreadableError("it names no Sentinel, or no service")
    return hosts, service, f"redis://{login}{at}localhost/{database}{mark}{options}"
