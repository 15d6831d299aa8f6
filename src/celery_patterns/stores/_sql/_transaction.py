"""Speaking in a transaction that a task has opened on a connection of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ...exceptions import ConfigurationError
from ._database import execute

__all__ = ["speaking"]

_DIALECTS: Mapping[str, Any] = {"postgresql": postgresql.dialect, "sqlite": sqlite.dialect}


def speaking(connection: Any, kind: str) -> Callable[[sa.Executable, Mapping[str, Any]], bool]:
    """How to run a statement in the open transaction of a connection, and learn whether it found a row.

    Args:
        connection: A SQLAlchemy ``Connection`` or ``Session``, or a Django connection.
        kind: Which dialect the store's database speaks.

    Raises:
        ConfigurationError: When it is none of these, or commits each statement by itself.
    """
    if hasattr(connection, "in_atomic_block"):
        return _in_django(connection, kind)
    if not isinstance(connection, sa.Connection) and callable(getattr(connection, "connection", None)):
        connection = connection.connection()  # a Session's, or a scoped_session's
    if isinstance(connection, sa.Connection):
        return _in_sqlalchemy(connection)
    raise ConfigurationError(
        "expected commit_with() to be given a SQLAlchemy Session or Connection, or a Django connection, got a "
        f"{type(connection).__name__}"
    )


def _in_sqlalchemy(connection: sa.Connection) -> Callable[[sa.Executable, Mapping[str, Any]], bool]:
    driver: Any = connection.connection.dbapi_connection
    autocommit = getattr(driver, "autocommit", None)  # of sqlite3 no bool, where it leaves it to its isolation level
    if autocommit is True or (not isinstance(autocommit, bool) and driver.isolation_level is None):
        raise _commits_by_itself("another isolation level than AUTOCOMMIT")
    return lambda statement, values: execute(connection, statement, values).first() is not None


def _in_django(connection: Any, kind: str) -> Callable[[sa.Executable, Mapping[str, Any]], bool]:
    if not connection.in_atomic_block:
        raise _commits_by_itself("it inside of transaction.atomic()")

    def ask(statement: Any, values: Mapping[str, Any]) -> bool:
        compiled = statement.compile(dialect=_DIALECTS[kind](paramstyle="format"))
        bound = compiled.construct_params(values)
        with connection.cursor() as cursor:
            cursor.execute(str(compiled), [bound[name] for name in compiled.positiontup])
            return cursor.fetchone() is not None

    return ask


def _commits_by_itself(expected: str) -> ConfigurationError:
    return ConfigurationError(
        f"commit_with() was given a connection that commits each statement by itself; expected {expected}"
    )
