"""The store: each step reads a row, lets the rules decide, and writes the row only as it was read."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from ...exceptions import ConfigurationError, StoreUnavailable
from ...typing import Answer, Attempt, Claimed, Done, Ended, KeyRecord, Running
from .. import _record as rules
from .._record import Record, Spans
from .._spans import microseconds, span
from ._database import Database
from ._table import FIELDS, Statements, completion, written
from ._table import table as table_named
from ._transaction import asking

__all__ = ["SQLStore"]

_A = TypeVar("_A")

#: So many claims of a process after the last time, it deletes rows that have expired: twice as many as it can have made.
PURGE_EVERY, PURGED = 500, 1000
#: For how many seconds a renewal asks for a row that somebody is about to change: that is a transaction of the task's
#: own, most likely, and who renews leases has others to renew.
RENEWED = 0.1
#: So many rows are read at once where all are.
PAGE = 1000


class SQLStore:
    """Keys in a table of PostgreSQL 11 or later, or of an SQLite file, 3.35 or later.

    It promises each step to be atomic, on the database's own clock, and what is recorded to be as durable as the
    database. In the database of the task's own rows, the record can be part of the task's own transaction:
    :meth:`Claim.commit_with() <celery_patterns._call.Claim.commit_with>`. A task that succeeds costs two statements. No row
    is locked while a body runs.

    It does not promise to be made for many tasks a second: each step is a transaction of its own, which the database
    writes to its disk. Nor does it make its table by itself: see :meth:`create_table` and :attr:`table`.

    Args:
        url: ``postgresql://user:password@host:port/database``, read with psycopg, or ``sqlite:////path/to/a/file``. Options
            in its query are the driver's, such as ``?sslmode=verify-full``.
        table: The table's name; ``celery_patterns_keys`` by default.
        patience: For how long a step is tried again when the database is away; 2 seconds by default.

    Attributes:
        table: The table, as SQLAlchemy knows it: for Alembic, ``target_metadata = store.table.metadata``.

    Raises:
        ConfigurationError: When the URL names no such database, or its driver is not installed.
    """

    def __init__(
        self, url: str, *, table: str = "celery_patterns_keys", patience: timedelta = timedelta(seconds=2)
    ) -> None:
        if not isinstance(table, str) or not table:
            raise ConfigurationError(f"expected table to be the name of one, got {table!r}")
        if "." in table:
            raise ConfigurationError(
                f"expected table to be a name without a schema, which is the connection's search_path: "
                f"?options=-csearch_path%3Dshop in the URL, got {table!r}"
            )
        if not isinstance(patience, timedelta) or patience < timedelta(0):
            raise ConfigurationError(f"expected patience to be a timedelta of 0 or more, got {patience!r}")
        self._database = Database(url, patience.total_seconds())
        #: Where it is reached, with its password: not to be shown.
        self.url = self._database.url
        self.table = table_named(table)
        self._statements = Statements(self.table, self._database.kind)
        # Not all processes at once, nor never where each ends after a few tasks.
        self._claims = random.randrange(PURGE_EVERY)  # noqa: S311

    # The steps

    def claim(self, key: str, attempt: Attempt, fingerprint: str, *, lease: timedelta, ttl: timedelta) -> Answer:
        self._purge_in_time()
        spans = Spans(microseconds(lease), microseconds(ttl))
        run = rules.run_digest(attempt.run_id)
        first = Record("running", attempt.owner, run, attempt.number, starts=1, fingerprint=fingerprint)
        made = self._database.ask(self._statements.claim, {"its_key": key, **written(first), **spans._asdict()})
        if made:  # as most keys, it was new
            return Claimed(made[0].fence, 1)
        return self._step(key, rules.claim, attempt, fingerprint, spans, locked=_still_held)

    def renew(self, key: str, attempt: Attempt, fence: int, *, lease: timedelta, ttl: timedelta) -> bool:
        spans = Spans(microseconds(lease), microseconds(ttl))
        return self._step(key, rules.renew, attempt.owner, fence, spans, patience=RENEWED)

    def complete(
        self,
        key: str,
        attempt: Attempt,
        fingerprint: str,
        fence: int,
        result: bytes | None,
        *,
        ttl: timedelta,
    ) -> Answer:
        if self._database.ask(self._statements.complete, completion(key, attempt, fingerprint, fence, result, ttl)):
            return Done(result, ours=True)
        return self._step(key, rules.complete, attempt, fingerprint, fence, result, microseconds(ttl))

    def release(self, key: str, attempt: Attempt, fence: int | None, *, ended: Ended | None, ttl: timedelta) -> bool:
        return self._step(key, rules.release, attempt.owner, fence, ended, microseconds(ttl))

    def count_start(self, key: str, owner: str, *, ttl: timedelta) -> int:
        return self._step(f"{rules.STARTS}{key}", rules.count_start, owner, microseconds(ttl))

    def excuse_start(self, key: str, *, ttl: timedelta) -> None:
        self.count_start(key, "", ttl=ttl)

    def forget_starts(self, key: str) -> None:
        self._database.ask(self._statements.delete, {"its_key": f"{rules.STARTS}{key}"})

    def commit(
        self,
        connection: Any,
        key: str,
        attempt: Attempt,
        fingerprint: str,
        fence: int,
        result: bytes | None,
        *,
        ttl: timedelta,
    ) -> bool:
        ask = asking(connection, self._database.kind)
        if ask(self._statements.commit, completion(key, attempt, fingerprint, fence, result, ttl)):
            return True
        found = ask(self._statements.find, {"its_key": key})
        if found is not None:
            if tuple(found) != ("done", attempt.owner, fence):
                return False
            if self._is_committed(key):
                raise ConfigurationError(
                    "commit_with() was called in a second transaction: the first one has recorded the work, and was "
                    "committed; expected one transaction for all that the task writes"
                )
            return True  # a second time in one transaction: what was recorded first stays
        if self._look(key)[1] is None:
            return False
        raise ConfigurationError(
            "commit_with() does not see the record of the key in the connection's database; expected a connection to the "
            f"database of the store, {self!r}, with a transaction that has begun after the task has"
        )

    def _is_committed(self, key: str) -> bool:
        """Whether others see that the work is done."""
        try:
            record = self._look(key)[1]
        except StoreUnavailable as error:
            if error.locked:  # a file that only its one writer can lock: this very transaction, which is a large one
                return False
            raise
        return record is not None and record.state == "done"

    def committed(self, key: str, attempt: Attempt, fingerprint: str, fence: int) -> Answer | None:
        now, record = self._look(key)
        return rules.committed(record, attempt, fingerprint, fence, now)

    # Looking through it

    def records(self, beginning: str = "") -> Iterator[KeyRecord]:
        after = ""
        while rows := self._database.ask(
            self._statements.page, {"after": after, "beginning": beginning, "limit": PAGE}
        ):
            for row in rows:
                if not row.key.startswith(rules.STARTS):
                    yield rules.told(row.key, Record(*row[2:]), row.now)
            after = rows[-1].key

    def record(self, key: str) -> KeyRecord | None:
        now, record = self._look(key)
        return None if record is None or record.expires <= now else rules.told(key, record, now)

    def free(self, key: str, fence: int, *, living: bool = False) -> bool:
        return self._step(key, rules.free, fence, living)

    def forget(self, key: str, *, fence: int | None = None, beginning: bytes = b"") -> bool:
        return self._step(key, rules.forget, fence, beginning)

    # The table

    def ddl(self) -> str:
        """What :meth:`create_table` says to the database, for a migration of your own."""
        return "".join(f"{statement};\n" for statement in self._makings().values())

    def _makings(self) -> dict[str, str]:
        """How the table and its index are made, by name."""
        said, table = self._database.said, self.table
        made = {table.name: said(CreateTable(table, if_not_exists=True))}
        return made | {str(one.name): said(CreateIndex(one, if_not_exists=True)) for one in table.indexes}

    def create_table(self) -> None:
        """Make the table, and its index, where there is none.

        Raises:
            StoreUnavailable: When the database does not answer, or does not allow it.
        """
        for name, statement in self._makings().items():
            # Looked for first: even a statement that then makes nothing asks for a right, and may wait for a lock.
            if name not in self._database.made(self.table):
                try:
                    self._database.ask(sa.text(statement), {})
                except StoreUnavailable:
                    if name not in self._database.made(self.table):  # another process has made it at the same moment
                        raise

    def purge(self) -> int:
        """Delete all rows that have expired, 1,000 at a time, and say how many there were.

        Each process does so by itself as it claims keys; call it where a table is to be emptied after use.

        Raises:
            StoreUnavailable: When the database does not answer.
        """
        purged = 0
        while gone := len(self._database.ask(self._statements.purge, {"limit": PURGED})):
            purged += gone
        return purged

    def __repr__(self) -> str:
        return f"<SQLStore {self._database.kind} table={self.table.name!r}>"

    def _purge_in_time(self) -> None:
        self._claims += 1
        if self._claims >= PURGE_EVERY:
            self._claims = 0
            with contextlib.suppress(StoreUnavailable):  # the claim itself will say
                self._database.ask(self._statements.purge, {"limit": PURGED})

    # How it is asked

    def _step(
        self,
        key: str,
        rule: Callable[..., tuple[Record | None, _A]],
        *asked: Any,
        locked: Callable[[Record, int, Attempt], _A | None] | None = None,
        patience: float | None = None,
    ) -> _A:
        """Read the row, and write what the rule makes of it, if it is still as it was read; otherwise read it again."""
        deadline, seen = None, None
        while True:
            row = self._database.ask(self._statements.look, {"its_key": key})[0]
            record = None if row.version is None else _record_of(row)
            stands, answer = rule(None if record is None or record.expires <= row.now else record, *asked, row.now)
            if stands is None or self._is_written(key, row.version, stands):
                return answer
            if record is not None and row.version == seen:
                # Nobody has changed it, so somebody is about to: another step, or a transaction with commit_with().
                held = locked and locked(record, row.now, asked[0])
                if held:
                    return held
                deadline = deadline or time.monotonic() + (self._database.patience if patience is None else patience)
                if time.monotonic() > deadline:
                    raise StoreUnavailable("the key's row is locked by a transaction that has not ended", locked=True)
                time.sleep(0.01)
            seen = row.version

    def _look(self, key: str) -> tuple[int, Record | None]:
        """The clock, and what stands there, expired or not."""
        row = self._database.ask(self._statements.look, {"its_key": key})[0]
        return row.now, None if row.version is None else _record_of(row)

    def _is_written(self, key: str, version: int | None, record: Record) -> bool:
        values = {"its_key": key, **written(record)}
        if version is None:
            return bool(self._database.ask(self._statements.insert, values))
        return bool(self._database.ask(self._statements.update, {**values, "seen": version}))


def _record_of(row: Any) -> Record:
    return Record(*(getattr(row, name) for name in FIELDS))


def _still_held(record: Record, now: int, asks: Attempt) -> Answer | None:
    """What a claim is told of a locked row: the holder's transaction protects it also when its lease is over."""
    if record.state != "running":
        return None
    return Running(span(record.lease_ends - now), same_run=record.run == rules.run_digest(asks.run_id))
