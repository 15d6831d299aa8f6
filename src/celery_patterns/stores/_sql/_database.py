"""How the database is reached: each statement a transaction of its own, asked again when it was away."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.pool import NullPool

from ...exceptions import ConfigurationError, StoreUnavailable

__all__ = ["Database", "execute", "names_no_table"]

_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg", "sqlite": "sqlite+pysqlite"}
_KNOWN = {*_DRIVERS.values()}
#: What a connection to PostgreSQL is opened with, unless the URL says otherwise: a network that is silent is given up
#: after some 10 seconds; and nothing is prepared on the server, which a pooler in between may not bear.
_POSTGRESQL: Mapping[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 5000,
    "prepare_threshold": None,
}
#: So many connections a process keeps for the next steps.
KEPT = 16
#: The classes of PostgreSQL's refusals that are as right a second time: who we are, which database, what we ask.
_FINAL = ("28", "3D", "42")
#: What a server says that only reads: one that was the first until a moment ago, perhaps.
_READS_ONLY = "25006"


class Database:
    """Connections to one database, a few for each process, made when they are first needed.

    Args:
        url: See :class:`SQLStore`.
        patience: For how many seconds a statement is tried again.

    Raises:
        ConfigurationError: For a URL of another kind, one that cannot be read, and a driver that is not installed.
    """

    def __init__(self, url: str, patience: float) -> None:
        self.patience = patience
        self._engine = _engine(_read(url), patience)
        self._pid, self._free = os.getpid(), deque[sa.Connection]()
        self._parents: list[deque[sa.Connection]] = []
        self.url = self._engine.url.render_as_string(hide_password=False)
        #: Which dialect it speaks.
        self.kind = self._engine.dialect.name

    def ask(self, statement: sa.Executable, values: Mapping[str, Any]) -> list[Any]:
        """Run one statement, and give the rows that it returns.

        Raises:
            StoreUnavailable: When the database does not answer in time, or refuses.
        """
        deadline, pause = time.monotonic() + self.patience, 0.0
        while True:
            try:
                return self._ask_once(statement, values)
            except DBAPIError as error:
                if not _passes(error) or time.monotonic() + pause > deadline:
                    raise StoreUnavailable(_complaint(error), locked=_is_busy(error)) from error
                self._let_all_go()  # the others were opened to the same server
            time.sleep(pause)
            pause = min(max(pause * 2, 0.05), 0.5)

    def made(self, table: sa.Table) -> set[str]:
        """Which of a table and its indexes are there, by name.

        Raises:
            StoreUnavailable: When the database does not answer.
        """
        try:
            with self._engine.connect() as connection:
                look = sa.inspect(connection)
                if not look.has_table(table.name):
                    return set()
                return {table.name, *(str(index["name"]) for index in look.get_indexes(table.name))}
        except DBAPIError as error:
            raise StoreUnavailable(_complaint(error)) from error

    def said(self, statement: Any) -> str:
        """A statement in the database's own words."""
        return str(statement.compile(self._engine)).strip()

    def _ask_once(self, statement: sa.Executable, values: Mapping[str, Any]) -> list[Any]:
        connection = self._take()
        try:
            result = execute(connection, statement, values)
            rows = list(result) if result.returns_rows else []
        except BaseException:
            # It may be dead, or of a server that only reads by now; and where a time limit struck between question and
            # answer, the answer must not become the next question's.
            _let_go(connection)
            raise
        if len(self._free) < KEPT:
            self._free.append(connection)
        else:
            _let_go(connection)
        return rows

    def _take(self) -> sa.Connection:
        # As many are kept as are used at once, so threads and greenlets share them. SQLAlchemy's pool takes locks: a soft
        # time limit that strikes as one is taken would leave it locked for the thread that renews the leases.
        if self._pid != os.getpid():
            # A forked child must not speak on its parent's sockets, and not even close them: that would say goodbye.
            self._parents.append(self._free)
            self._free, self._pid = deque(), os.getpid()  # in this order: another thread looks at the id first
        try:
            return self._free.pop()
        except IndexError:
            return self._engine.connect()

    def _let_all_go(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                _let_go(self._free.pop())


def _let_go(connection: sa.Connection) -> None:
    with contextlib.suppress(SQLAlchemyError):
        connection.invalidate()
        connection.close()


def execute(connection: sa.Connection, statement: sa.Executable, values: Mapping[str, Any]) -> sa.CursorResult[Any]:
    """Run a statement; what strikes meanwhile, such as a time limit, is raised as itself.

    SQLAlchemy makes an error of its own of whatever is raised before the driver is asked.
    """
    try:
        return connection.execute(statement, values)
    except DBAPIError:
        raise
    except StatementError as error:
        raise error.orig or error from None


def _read(url: str) -> sa.URL:
    scheme, is_url, _ = str(url).partition("://")
    expected = "expected the store's URL to be postgresql://user:password@host/database or sqlite:////path/to/a/file"
    # Only its scheme is shown: the rest may hold a password.
    if not is_url or _DRIVERS.get(scheme, scheme) not in _KNOWN:
        raise ConfigurationError(f"{expected}, got {f'one of scheme {scheme!r}' if is_url else 'one without ://'}")
    try:
        read = sa.make_url(url).set(drivername=_DRIVERS.get(scheme, scheme))
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"{expected}, got one of scheme {scheme!r} that cannot be read") from None
    beginning, _, query = url.partition("?")
    cut_off = beginning.count("@") > 1 or any("@" in piece and "=" not in piece for piece in query.split("&"))
    if read.get_backend_name() == "postgresql" and cut_off:
        raise ConfigurationError(f"{expected}, with @ as %40 where it is in the password, got one with several @")
    if read.get_backend_name() == "sqlite" and _is_in_memory(read):
        raise ConfigurationError(
            "a database in memory is another one in each process; expected the path of a file, as in "
            "sqlite:////path/to/a/file, or MemoryStore() in a test"
        )
    return read


def _is_in_memory(url: sa.URL) -> bool:
    file = url.database or ":memory:"
    return file == ":memory:" or file.startswith("file::memory:") or url.query.get("mode") == "memory"


def _engine(url: sa.URL, patience: float) -> sa.Engine:
    options: dict[str, Any] = {"timeout": patience, "check_same_thread": False}
    if url.get_backend_name() == "postgresql":
        options = {name: value for name, value in _POSTGRESQL.items() if name not in url.query}
    try:
        engine = sa.create_engine(
            url, isolation_level="AUTOCOMMIT", connect_args=options, hide_parameters=True, poolclass=NullPool
        )
    except (ImportError, SQLAlchemyError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ConfigurationError(
            f"the driver {url.drivername} cannot be used: {type(error).__name__}: {said}; expected psycopg to be installed, "
            "with the library that it needs: pip install 'celery-patterns[sql]' 'psycopg[binary]'"
        ) from error
    if engine.dialect.name == "postgresql":
        _expect_options(engine.dialect.dbapi, url)
    return engine


def _expect_options(psycopg: Any, url: sa.URL) -> None:
    """Refuse an option that the driver does not know, which would look like a database that is away."""
    try:
        psycopg.conninfo.make_conninfo(**dict.fromkeys(url.query, ""))
    except psycopg.Error as error:
        # A password that was cut off at a & would be shown as an option's name.
        said = "" if any("password" in name for name in url.query) else ": " + str(error).strip().partition("\n")[0]
        raise ConfigurationError(
            f"expected the options in the store's URL to be such as PostgreSQL's connections know{said}"
        ) from None


def _passes(error: DBAPIError) -> bool:
    """Whether it may be over in a moment: the server is away, busy, or a standby, or two statements met."""
    state = getattr(error.orig, "sqlstate", None) or ""
    if state.startswith(_FINAL):
        return False
    return state == _READS_ONLY or error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def _is_busy(error: DBAPIError) -> bool:
    """Whether somebody writes to a file of SQLite: that may be the task that has the key, with its own transaction."""
    return "database is locked" in str(error.orig)


def names_no_table(error: BaseException | None) -> bool:
    """Whether it is a driver's word for a table that is not there."""
    return getattr(error, "sqlstate", None) == "42P01" or "no such table" in str(error)


def _complaint(error: DBAPIError) -> str:
    said = str(error.orig).strip().partition("\n")[0]
    if names_no_table(error.orig):
        return (
            "the store's table is not there; expected it to be made before, by SQLStore(…).create_table(), or by a "
            f"migration with what its ddl() says ({said})"
        )
    return f"the database refused: {type(error.orig).__name__}: {said}"
