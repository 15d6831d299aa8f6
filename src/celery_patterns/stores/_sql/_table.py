"""The table, and all that is ever said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ...typing import Attempt
from .._record import Record
from .._spans import microseconds

__all__ = ["FIELDS", "Statements", "completion", "table", "written"]

#: The database's own clock, in microseconds.
_NOW = {
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000",
}
_INSERT: Mapping[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
#: What people are shown of a row, and what stands for the rest: a result may be large, and is the user's.
_SHOWN = {"state", "owner", "fence", "starts", "lease_ends", "expires"}
_HIDDEN = {one.name: sa.literal(one.default).label(one.name) for one in fields(Record) if one.name not in _SHOWN}
#: What a row has of a record; beside it stand the key, and a version that is new with each change of the row.
FIELDS = [field.name for field in fields(Record)]


def table(name: str) -> sa.Table:
    """The table as SQLAlchemy knows it."""

    def column(name: str, kind: Any, **more: Any) -> sa.Column[Any]:
        return sa.Column(name, kind, nullable=False, **more)

    return sa.Table(
        name,
        sa.MetaData(),
        column("key", sa.Text, primary_key=True),
        column("state", sa.Text),
        column("owner", sa.Text),
        column("run", sa.Text),
        column("number", sa.Integer),
        column("fence", sa.BigInteger),
        column("starts", sa.Integer),
        column("fingerprint", sa.Text),
        column("lease_ends", sa.BigInteger),
        column("expires", sa.BigInteger, index=True),
        column("marks", sa.Text),
        sa.Column("result", sa.LargeBinary),
        column("version", sa.BigInteger),
    )


class Statements:
    """All that is said to the database. A row is changed only as it is expected to be, and no lock is waited for.

    Args:
        table: The store's.
        kind: Which dialect is spoken.
    """

    def __init__(self, table: sa.Table, kind: str) -> None:
        row = table.c
        now: sa.ColumnElement[int] = sa.literal_column(_NOW[kind], sa.BigInteger)
        key: sa.BindParameter[str] = sa.bindparam("its_key", type_=sa.Text)
        owner: sa.BindParameter[str] = sa.bindparam("its_owner", type_=sa.Text)
        limit = sa.bindparam("limit", type_=sa.Integer)
        lease, ttl, fence, seen = (
            sa.bindparam(one, type_=sa.BigInteger) for one in ("lease", "ttl", "its_fence", "seen")
        )
        given = {name: sa.bindparam(f"new_{name}", type_=row[name].type) for name in FIELDS}

        def unlocked(*where: Any, limit: Any = None) -> Any:
            keys = sa.select(row.key).where(*where).limit(limit)
            return row.key.in_(keys.with_for_update(skip_locked=True) if kind == "postgresql" else keys)

        mine = (row.key == key, row.state == "running", row.owner == owner, row.fence == fence)
        as_seen = (row.key == key, row.version == seen)
        over = {"state": "done", "run": "", "number": -1, "starts": 0, "lease_ends": 0, "expires": now + ttl}
        changed = {"version": row.version + 1}
        done = {**over, **changed, "fingerprint": given["fingerprint"], "result": given["result"]}
        held = {"fence": now, "lease_ends": now + lease, "expires": now + lease + ttl}
        made = {"key": key, **given, "version": now}

        def unless_there(values: Mapping[str, Any]) -> Any:
            # Asked first: a row that somebody's transaction has changed would be waited for, conflict or not.
            there = sa.exists().where(row.key == key)
            new = sa.select(*(one.label(name) for name, one in values.items())).where(~there)
            return _INSERT[kind](table).from_select([*values], new).on_conflict_do_nothing()

        #: Take a key that has no row.
        self.claim = unless_there({**made, **held}).returning(row.fence)
        #: Record the work of who holds the key.
        self.complete = sa.update(table).where(unlocked(*mine)).values(done).returning(row.key)
        #: The same in somebody's transaction, which waits for a step that is under way.
        self.commit = sa.update(table).where(*mine).values(done).returning(row.key)
        self.find = sa.select(row.state, row.owner, row.fence).where(row.key == key)
        #: The clock, and the row if there is one.
        self.look = sa.select(now.label("now"), *row).select_from(
            sa.select(sa.literal(1).label("always")).subquery().outerjoin(table, row.key == key)
        )
        self.insert = unless_there(made).returning(row.key)
        self.update = sa.update(table).where(unlocked(*as_seen)).values({**given, **changed}).returning(row.key)
        begins = sa.func.substr(row.key, 1, sa.func.length(sa.bindparam("beginning", type_=sa.Text)))
        # Its first byte tells a result from a failure.
        first = sa.func.substr(row.result, 1, 1, type_=sa.LargeBinary).label("result")
        shown = {**_HIDDEN, **{name: row[name] for name in _SHOWN}, "result": first}
        pages = (row.key > sa.bindparam("after", type_=sa.Text), row.expires > now)
        #: So many rows that have not expired, in the order of their keys.
        self.page = (
            sa.select(now.label("now"), row.key, *(shown[name] for name in FIELDS))
            .where(*pages, begins == sa.bindparam("beginning", type_=sa.Text))
            .order_by(row.key)
            .limit(limit)
        )
        self.delete = sa.delete(table).where(row.key == key).returning(row.key)
        self.purge = sa.delete(table).where(unlocked(row.expires <= now, limit=limit)).returning(row.key)


def written(record: Record) -> dict[str, Any]:
    """The record, as what a statement writes."""
    return {f"new_{name}": getattr(record, name) for name in FIELDS}


def completion(
    key: str, attempt: Attempt, fingerprint: str, fence: int, result: bytes | None, ttl: timedelta
) -> dict[str, Any]:
    """What ``complete`` and ``commit`` are asked with."""
    return {
        "its_key": key,
        "its_owner": attempt.owner,
        "its_fence": fence,
        "new_fingerprint": fingerprint,
        "new_result": result,
        "ttl": microseconds(ttl),
    }
