"""Speaking in a transaction that a task has opened on a connection of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.exc import DBAPIError, UnboundExecutionError

from ...exceptions import ConfigurationError
from ._database import execute, names_no_table

__all__ = ["Asking", "asking"]

#: Runs a statement, and gives the row that it returns, or None.
Asking = Callable[[Any, Mapping[str, Any]], Any]

_DIALECTS: Mapping[str, Any] = {"postgresql": postgresql.dialect, "sqlite": sqlite.dialect}
_FAMILIES: Mapping[str, type] = {"postgresql": PGDialect, "sqlite": SQLiteDialect}
#: Django's own; a database that speaks PostgreSQL's language may have a name of its own.
_VENDORS = {"postgresql", "sqlite", "mysql", "oracle"}
_NO_TABLE = (
    "commit_with() found no table of the store's in the connection's database; expected a connection to the store's own "
    "database, with the same search_path"
)
_EXPECTED = "expected commit_with() to be given a SQLAlchemy Session or Connection, or a Django connection"


def asking(connection: Any, kind: str) -> Asking:
    """How to run a statement in the open transaction of a connection.

    Args:
        connection: A SQLAlchemy ``Connection`` or ``Session``, or a Django connection.
        kind: Which dialect the store's database speaks.

    Raises:
        ConfigurationError: When it is none of these, commits each statement by itself, or is in a savepoint.
    """
    if any(one.__module__.startswith("sqlalchemy.ext.asyncio") for one in type(connection).__mro__):
        raise ConfigurationError(f"{_EXPECTED}, got an {type(connection).__name__}; its run_sync() gives you one")
    if hasattr(connection, "in_atomic_block"):
        return _in_django(connection, kind)
    if not isinstance(connection, sa.Connection) and callable(getattr(connection, "connection", None)):
        connection = _of_session(connection)
    if isinstance(connection, sa.Connection):
        return _in_sqlalchemy(connection, kind)
    raise ConfigurationError(f"{_EXPECTED}, got {_a(type(connection).__name__)}")


def _of_session(session: Any) -> Any:
    try:
        return session.connection()
    except UnboundExecutionError:
        raise ConfigurationError(
            "commit_with() was given a Session that is bound to no one database; expected "
            "session.connection(bind_arguments=…), for the database of the store"
        ) from None


def _in_sqlalchemy(connection: sa.Connection, kind: str) -> Asking:
    if not isinstance(connection.dialect, _FAMILIES[kind]):  # as those of databases that speak PostgreSQL's
        raise _of_another_kind(connection.dialect.name, kind)
    driver: Any = connection.connection.dbapi_connection
    if _commits_each(driver):
        raise _commits_by_itself("another isolation level than AUTOCOMMIT")
    if connection.in_nested_transaction():
        raise _in_savepoint()

    def ask(statement: Any, values: Mapping[str, Any]) -> Any:
        try:
            return execute(connection, statement, values).first()
        except DBAPIError as error:
            error.hide_parameters = True  # the task's result is among them
            if names_no_table(error.orig):
                raise ConfigurationError(_NO_TABLE) from error
            raise

    return ask


def _commits_each(driver: Any) -> bool:
    autocommit = getattr(driver, "autocommit", None)  # of sqlite3 no bool, where it leaves it to its isolation level
    if isinstance(autocommit, bool):
        return autocommit
    return driver.isolation_level is None and not driver.in_transaction


def _in_django(connection: Any, kind: str) -> Asking:
    if connection.vendor in _VENDORS - {kind}:
        raise _of_another_kind(connection.vendor, kind)
    if not connection.in_atomic_block:
        raise _commits_by_itself("it inside of transaction.atomic()")
    if any(connection.savepoint_ids):
        raise _in_savepoint()

    def ask(statement: Any, values: Mapping[str, Any]) -> Any:
        compiled = statement.compile(dialect=_DIALECTS[kind](paramstyle="format"))
        bound = compiled.construct_params(values)
        with connection.cursor() as cursor:
            try:
                cursor.execute(str(compiled), [bound[name] for name in compiled.positiontup])
            except Exception as error:
                if names_no_table(error.__cause__):
                    raise ConfigurationError(_NO_TABLE) from error
                raise
            return cursor.fetchone()

    return ask


def _of_another_kind(found: str, kind: str) -> ConfigurationError:
    return ConfigurationError(
        f"commit_with() was given a connection to a database of another kind; expected the store's own, {kind}, got {found}"
    )


def _commits_by_itself(expected: str) -> ConfigurationError:
    return ConfigurationError(
        f"commit_with() was given a connection that commits each statement by itself; expected {expected}"
    )


def _in_savepoint() -> ConfigurationError:
    return ConfigurationError(
        "commit_with() was called in a savepoint, which can be rolled back while the work around it is committed; expected "
        "the call in the transaction itself: outside of begin_nested(), and in the outermost atomic()"
    )


def _a(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
