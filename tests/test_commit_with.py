"""The record of finished work is part of the task's own transaction: both stand, or neither does."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import django.conf
import django.db
import pytest
import sqlalchemy as sa
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from django.db import transaction
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import celery_patterns as patterns
from celery_patterns import dead_letter, idempotent, retry
from celery_patterns._message import HEADER
from celery_patterns.exceptions import ClaimLost, ConfigurationError, NotCommitted, StoreUnavailable
from celery_patterns.stores import MemoryStore, SQLStore
from celery_patterns.typing import Attempt, Claimed, Done, Running, TransactionalStore

from .conftest import POSTGRES
from .harness import wait_until
from .here import run_here
from .servers import new_database, postgres_url
from .test_retry import published

DAY = timedelta(days=1)

if not django.conf.settings.configured:
    django.conf.settings.configure(USE_TZ=True)


@dataclass
class Bank:
    """A database with a table of the task's own, and the store's table beside it."""

    kind: str
    url: sa.URL
    store: SQLStore
    books: str

    def __post_init__(self) -> None:
        self.engine = sa.create_engine(self.url)
        self._django = f"bank-{uuid.uuid4().hex}"
        with self.engine.begin() as connection:
            connection.execute(sa.text(f"CREATE TABLE {self.books} (x INTEGER)"))

    def booked(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.text(f"SELECT x FROM {self.books} ORDER BY x")).scalars())

    def book(self) -> str:
        return f"INSERT INTO {self.books} VALUES (1)"

    def django(self) -> Any:
        if self._django not in django.db.connections.databases:
            how = {"ENGINE": "django.db.backends.sqlite3", "NAME": self.url.database}
            if self.kind == "postgresql":
                where = {"HOST": self.url.host, "PORT": self.url.port, "USER": self.url.username}
                how = {"ENGINE": "django.db.backends.postgresql", "NAME": self.url.database, **where}
            django.db.connections.databases.update(
                django.db.ConnectionHandler().configure_settings({"default": how, self._django: how})
            )
        return django.db.connections[self._django]

    @contextmanager
    def transaction(self, by: str = "session") -> Iterator[Any]:
        """One in which the task has booked something already; committed at its end, rolled back by an error."""
        if by == "django":
            connection = self.django()
            with django.db.transaction.atomic(using=self._django):
                connection.cursor().execute(self.book())
                yield connection
        elif by == "connection":
            with self.engine.begin() as connection:
                connection.execute(sa.text(self.book()))
                yield connection
        elif by == "scoped session":
            session: Any = scoped_session(sessionmaker(self.engine))
            with session.begin():
                session.execute(sa.text(self.book()))
                yield session
            session.remove()
        else:
            with Session(self.engine) as session, session.begin():
                session.execute(sa.text(self.book()))
                yield session

    def close(self) -> None:
        if self._django in django.db.connections.databases:
            django.db.connections[self._django].close()
        self.engine.dispose()


@pytest.fixture(params=["postgresql", "sqlite"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bank]:
    name = uuid.uuid4().hex
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/bank.db"
        store = SQLStore(url, patience=timedelta(seconds=0.3))
        made = Bank(request.param, sa.make_url(url), store, "books")
    else:
        url = postgres_url(int(os.environ[POSTGRES]), "postgres")
        store = SQLStore(url, table=f"keys_{name}", patience=timedelta(seconds=0.3))
        made = Bank(request.param, sa.make_url(url).set(drivername="postgresql+psycopg"), store, f"books_{name}")
    store.create_table()
    with closing(made):
        yield made


@pytest.fixture
def app(database: str, bank: Bank) -> Iterator[Celery]:
    made = Celery("bank", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, bank.store)
    with closing(made):
        yield made


def keyed(app: Celery, body: Callable[[int], Any], *more: Any, lease: float = 30.0, **options: Any) -> Any:
    own = idempotent(key="x", ttl=DAY, lease=timedelta(seconds=lease), **options)
    app.finalize()  # the task is made here, and not by the first of many threads that look at it
    return app.task(shared=False, name="t", patterns=(own, *more))(body)


BY = pytest.mark.parametrize("by", ["session", "connection", "scoped session", "django"])


@BY
def test_the_record_is_committed_with_the_work(app: Celery, bank: Bank, by: str) -> None:
    """A redelivery, as after a crash before the acknowledgement, and a duplicate return the stored result."""

    def work(x: int) -> Any:
        with bank.transaction(by) as connection:
            return patterns.current_claim().commit_with(connection, {"receipt": [x]})

    task = keyed(app, work)
    ran = run_here(task, 7)
    assert (ran.state, ran.value) == ("SUCCESS", {"receipt": [7]})
    assert run_here(task, 7, task_id=ran.id, redelivered=True).value == {"receipt": [7]}
    assert run_here(task, 7).value == {"receipt": [7]}
    assert bank.booked() == [1]


@BY
def test_what_is_rolled_back_has_not_happened(app: Celery, bank: Bank, by: str) -> None:
    """Neither the work nor its record; the error is the task's, and the next call runs."""
    broken = [True]

    def work(x: int) -> Any:
        with bank.transaction(by) as connection:
            patterns.current_claim().commit_with(connection, x)
            if broken.pop() if broken else False:
                raise ValueError("no")
        return x

    task = keyed(app, work)
    ran = run_here(task, 7)
    assert (ran.state, type(ran.value), bank.booked()) == ("FAILURE", ValueError, [])
    assert (run_here(task, 7).value, bank.booked()) == (7, [1])


def test_a_worker_that_dies_after_its_commit_has_done_the_work(app: Celery, bank: Bank) -> None:
    """Between the commit and everything else: who gets the message next finds the result, before the lease is over."""

    class Killed(BaseException):
        pass

    def work(x: int) -> None:
        with bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, "booked")
        raise Killed

    task = keyed(app, work)
    with contextlib.suppress(Killed):
        run_here(task, 7, task_id="a")
    assert run_here(task, 7, task_id="a", redelivered=True).value == "booked"
    assert bank.booked() == [1]


def test_a_failure_after_the_commit_is_one_and_its_retry_returns_the_result(app: Celery, bank: Bank) -> None:
    """The work is done; what went wrong behind it is told."""

    def work(x: int) -> None:
        with bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, "booked")
        raise ConnectionError("the e-mail was not sent")

    task = keyed(app, work, retry(on=ConnectionError, attempts=2, wait=lambda _: 0))
    assert run_here(task, 7, task_id="a").state == "RETRY"
    assert run_here(task, 7, task_id="a", retries=1).value == "booked"
    assert bank.booked() == [1]


@pytest.mark.parametrize("how", ["rolled back", "still open"])
def test_a_body_that_did_not_commit_has_failed(app: Celery, bank: Bank, how: str) -> None:
    """It returned, and its transaction was not committed: a session that is closed is rolled back, and says nothing."""
    left: list[Any] = []

    def work(x: int) -> str:
        session = Session(bank.engine)
        session.execute(sa.text(bank.book()))
        patterns.current_claim().commit_with(session, "booked")
        left.append(session)
        if how == "rolled back":
            session.close()
        return "booked"

    task = keyed(app, work)
    ran = run_here(task, 7)
    assert (ran.state, type(ran.value)) == ("FAILURE", NotCommitted)
    assert "t: commit_with() was called, and its transaction had not been committed" in str(ran.value)
    left[0].close()
    assert bank.booked() == []


def test_a_body_may_try_its_transaction_again(app: Celery, bank: Bank) -> None:
    """As one does whose transaction met another."""

    def work(x: int) -> str:
        with pytest.raises(ValueError, match="met another"), bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, "first")
            raise ValueError("met another")
        with bank.transaction() as connection:
            return str(patterns.current_claim().commit_with(connection, "second"))

    task = keyed(app, work)
    assert run_here(task, 7).value == run_here(task, 7).value == "second"
    assert bank.booked() == [1]


def take_over(bank: Bank, key: str) -> Claimed:
    """Another run takes the key, whose lease is over by now."""
    answer = wait_until(
        lambda: isinstance(held := _claim(bank, key), Claimed) and held,
        5,
        "the lease is over",
    )
    assert isinstance(answer, Claimed)
    return answer


OTHER = Attempt("other/0", 0, "other")


def _claim(bank: Bank, key: str, who: Attempt = OTHER) -> Any:
    key = f"t:{key}"
    with bank.engine.connect() as connection:
        fingerprint = connection.execute(
            sa.select(bank.store.table.c.fingerprint).where(bank.store.table.c.key == key)
        ).scalar()
    return bank.store.claim(key, who, str(fingerprint), lease=DAY, ttl=DAY)


@BY
def test_a_run_that_lost_its_key_cannot_commit(app: Celery, bank: Bank, by: str, monkeypatch: Any) -> None:
    """It stood still for longer than its lease: its transaction is rolled back, and its message waits for the other run."""
    monkeypatch.setattr(bank.store, "renew", lambda *_, **__: (_ for _ in ()).throw(StoreUnavailable("cut off")))

    def work(x: int) -> Any:
        claim = patterns.current_claim()
        take_over(bank, claim.key)
        monkeypatch.undo()
        with bank.transaction(by) as connection:
            return claim.commit_with(connection, "the zombie's")

    task = keyed(app, work, lease=0.3)
    assert run_here(task, 7).state == "IGNORED"
    assert len(published(app)) == 1
    assert bank.booked() == []


def test_an_open_transaction_holds_the_key_also_when_the_lease_is_over(app: Celery, bank: Bank, caplog: Any) -> None:
    """Nobody is given the key from the record on to its commit, however long that takes, and nobody waits for the lock.

    SQLite locks the whole file: there the store does not answer meanwhile.
    """
    told: list[Any] = []

    def work(x: int) -> Any:
        claim = patterns.current_claim()
        with bank.transaction() as connection:
            claim.commit_with(connection, "booked")
            wait_until(lambda: claim.expires_in == timedelta(0), 5, "the lease is over")
            for who in (OTHER, replace(OTHER, run_id="a/0")):
                begun = time.monotonic()
                try:
                    answer = _claim(bank, claim.key, who)
                except StoreUnavailable as error:
                    answer = error
                told.append((answer, time.monotonic() - begun))
        told.append(claim.still_mine())
        return "booked"

    task = keyed(app, work, lease=0.5)
    with caplog.at_level(logging.INFO):
        ran = run_here(task, 7, task_id="a")
    assert (ran.state, ran.value, bank.booked()) == ("SUCCESS", "booked", [1])
    *answers, mine = told
    if bank.kind == "sqlite":
        assert [type(answer) for answer, _ in answers] == [StoreUnavailable] * 2
    else:
        assert [type(answer) for answer, _ in answers] == [Running] * 2
        assert [answer.same_run for answer, _ in answers] == [False, True]
        assert max(took for _, took in answers) < 1.5
    assert mine is True  # it is done, and nobody else can have it
    assert "claim_lost" not in caplog.text
    assert run_here(task, 7).value == "booked"


def test_the_lease_goes_on_after_a_rollback(app: Celery, bank: Bank) -> None:
    """The run still has its key."""

    def work(x: int) -> Any:
        claim = patterns.current_claim()
        with contextlib.suppress(ValueError), bank.transaction() as connection:
            claim.commit_with(connection, "booked")
            raise ValueError
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            assert isinstance(_claim(bank, claim.key), Running)
            time.sleep(0.05)
        with bank.transaction() as connection:
            return claim.commit_with(connection, "booked later")

    assert run_here(keyed(app, work, lease=0.6), 7).value == "booked later"


def test_a_connection_that_commits_by_itself_is_refused(app: Celery, bank: Bank) -> None:
    """The record would stand before the work does."""
    said: list[str] = []

    def work(x: int) -> None:
        by_itself = bank.engine.execution_options(isolation_level="AUTOCOMMIT")
        with by_itself.connect() as connection, Session(connection) as session:
            for given in (connection, session, bank.django()):
                with pytest.raises(ConfigurationError) as caught:
                    patterns.current_claim().commit_with(given, 1)
                said.append(str(caught.value))
        raise ValueError

    run_here(keyed(app, work), 7)
    assert [text.partition("; ")[2] for text in said] == [
        "expected another isolation level than AUTOCOMMIT",
        "expected another isolation level than AUTOCOMMIT",
        "expected it inside of transaction.atomic()",
    ]


def test_what_is_no_connection_to_the_stores_database_is_refused(app: Celery, bank: Bank, tmp_path: Path) -> None:
    """Of another kind, or to another database, where there is no such key."""
    said: list[str] = []
    elsewhere = SQLStore(f"sqlite:///{tmp_path}/elsewhere.db", table=bank.store.table.name)
    elsewhere.create_table()
    other = sa.create_engine(f"sqlite:///{tmp_path}/elsewhere.db")

    def work(x: int) -> None:
        with other.begin() as connection:
            for given in (7, bank.engine, *([connection] if bank.kind == "sqlite" else [])):
                with pytest.raises(ConfigurationError) as caught:
                    patterns.current_claim().commit_with(given, 1)
                said.append(str(caught.value))
        raise ValueError

    run_here(keyed(app, work), 7)
    assert said[0].endswith("a Django connection, got an int")
    assert said[1].endswith("a Django connection, got an Engine")
    assert bank.kind != "sqlite" or "does not see the record of the key in the connection's database" in said[2]
    other.dispose()


def test_a_connection_to_another_kind_of_database_is_refused(app: Celery, bank: Bank, tmp_path: Path) -> None:
    """By its name, and not by what that database makes of the store's words; Django's, too."""
    said: list[str] = []
    kinds = {"postgresql", "sqlite"}
    (kind,) = kinds - {bank.kind}
    url = f"sqlite:///{tmp_path}/kind.db"
    if kind == "postgresql":
        url = postgres_url(int(os.environ[POSTGRES]), "postgres").replace("postgresql", "postgresql+psycopg", 1)
    other = sa.create_engine(url)
    elsewhere = Bank(kind, other.url, bank.store, "none")

    def work(x: int) -> None:
        with other.begin() as connection, django.db.transaction.atomic(using=elsewhere.django().alias):
            for given in (connection, elsewhere.django()):
                with pytest.raises(ConfigurationError) as caught:
                    patterns.current_claim().commit_with(given, 1)
                said.append(str(caught.value))
        raise ValueError

    run_here(keyed(app, work), 7)
    expected = f"expected the store's own, {bank.kind}, got {kind}"
    assert [text.rpartition("; ")[2] for text in said] == [expected, expected]
    elsewhere.close()
    other.dispose()


def test_a_second_transaction_is_refused_once_the_first_is_committed(app: Celery, bank: Bank) -> None:
    """Work in several transactions would be recorded, and so done, with the first: the rest would never be."""
    said: list[str] = []

    def work(x: int) -> str:
        claim = patterns.current_claim()
        for part in range(2):
            with contextlib.ExitStack() as stack:
                if part:
                    stack.enter_context(pytest.raises(ConfigurationError, match="called in a second transaction"))
                    said.append("second")
                claim.commit_with(stack.enter_context(bank.transaction()), "booked")
        return "booked"

    task = keyed(app, work)
    assert (run_here(task, 7).value, run_here(task, 7).value) == ("booked", "booked")
    assert (said, bank.booked()) == (["second"], [1])


def test_a_body_that_returns_another_result_than_it_recorded_is_told(app: Celery, bank: Bank, caplog: Any) -> None:
    """The first caller gets that one, and each duplicate the one that was recorded."""

    def work(x: int) -> dict[str, int]:
        with bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, {"x": x} if x else None)
        return {"x": x}

    task = keyed(app, work)
    with caplog.at_level("WARNING", "celery_patterns"):
        assert (run_here(task, 7).value, run_here(task, 7).value) == ({"x": 7}, {"x": 7})
        assert [record.msg for record in caplog.records] == []
        assert (run_here(task, 0).value, run_here(task, 0).value) == ({"x": 0}, None)
    (told,) = [record.msg for record in caplog.records]
    assert (told.name, told.fields["reason"]) == ("result_not_kept", "commit_with() was given another one")


def test_what_was_recorded_is_what_the_result_is_compared_with(app: Celery, bank: Bank, caplog: Any) -> None:
    """Whatever was given later; as values; and one that was not kept is told once."""

    def work(x: int) -> Any:
        claim, first = patterns.current_claim(), {"a": 1, "b": [2]}
        with bank.transaction() as connection:
            if x == 3:
                return claim.commit_with(connection, object())
            claim.commit_with(connection, first)
            claim.commit_with(connection, "later")
        return [first, {"b": (2,), "a": 1}, "later"][x]

    task = keyed(app, work)
    with caplog.at_level("WARNING", "celery_patterns"):
        for x in range(4):
            run_here(task, x)
    reasons = [record.msg.fields["reason"] for record in caplog.records if record.name == "celery_patterns"]
    assert reasons == ["commit_with() was given another one", "it cannot be stored as JSON"]


def test_a_run_that_lost_its_key_has_lost_it_also_when_the_store_is_away(
    app: Celery, bank: Bank, monkeypatch: Any
) -> None:
    """The body's own connection has said so: nobody else is asked."""

    def work(x: int) -> None:
        (record,) = bank.store.records()
        bank.store.free(record.key, record.fence, living=True)
        look = bank.store._look

        def away(_: str) -> Any:
            monkeypatch.setattr(bank.store, "_look", look)
            raise StoreUnavailable("away")

        with bank.transaction() as connection:
            monkeypatch.setattr(bank.store, "_look", away)
            patterns.current_claim().commit_with(connection, 1)

    assert run_here(keyed(app, work), 7).state == "IGNORED"
    assert bank.booked() == []


def test_a_large_transaction_that_locks_its_file_may_record_twice(app: Celery, bank: Bank, monkeypatch: Any) -> None:
    """SQLite's one writer can keep the file even from those who read: that is no other transaction's commit."""

    def work(x: int) -> str:
        def locked(_: str) -> Any:
            raise StoreUnavailable("database is locked", locked=True)

        with bank.transaction() as connection, monkeypatch.context() as patched:
            patterns.current_claim().commit_with(connection, "booked")
            patched.setattr(bank.store, "_look", locked)
            patterns.current_claim().commit_with(connection, "booked")
        return "booked"

    assert (run_here(keyed(app, work), 7).value, bank.booked()) == ("booked", [1])


def test_a_database_that_speaks_postgresqls_language_is_one(app: Celery, bank: Bank) -> None:
    """Its dialect has another name, and is the same."""
    if bank.kind == "sqlite":
        return
    like = type("Like", (type(bank.engine.dialect),), {"name": "like"})

    def work(x: int) -> Any:
        with bank.transaction("connection") as connection:
            connection.dialect.__class__ = like
            return patterns.current_claim().commit_with(connection, "booked")

    assert (run_here(keyed(app, work), 7).value, bank.booked()) == ("booked", [1])


def test_a_file_that_somebody_writes_to_is_no_store_that_is_away(app: Celery, bank: Bank) -> None:
    """It may be the run that has the key, with its own transaction: nobody runs the body beside it."""
    begun, over, ran = threading.Event(), threading.Event(), []

    def work(x: int) -> str:
        ran.append("begins")
        with bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, "booked")
            begun.set()
            over.wait(30)
        ran.append("ends")
        return "booked"

    task = keyed(app, work, when_store_down="run")
    first = threading.Thread(target=lambda: run_here(task, 7))
    first.start()
    assert begun.wait(20)
    duplicate = run_here(task, 7)
    over.set()
    first.join(20)
    assert (duplicate.state, ran) == ("IGNORED", ["begins", "ends"])
    assert run_here(task, 7).value == "booked"


def test_a_store_that_is_not_in_sql_cannot(app: Celery, bank: Bank) -> None:
    """It says what is expected."""
    patterns.use_store(app, MemoryStore())

    def work(x: int) -> None:
        patterns.current_claim().commit_with(object(), 1)

    ran = run_here(keyed(app, work), 7)
    assert isinstance(ran.value, ConfigurationError)
    assert 'expected equip(app, store="postgresql://…"), got a MemoryStore' in str(ran.value)
    assert isinstance(bank.store, TransactionalStore)
    assert not isinstance(MemoryStore(), TransactionalStore)


def test_without_a_claim_nothing_is_committed(app: Celery, bank: Bank, monkeypatch: Any) -> None:
    """The store was away when the body began: it gives up, and its message waits."""

    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("unplugged")

    monkeypatch.setattr(bank.store, "claim", away)

    def work(x: int) -> Any:
        with bank.transaction() as connection:
            return patterns.current_claim().commit_with(connection, 1)

    assert run_here(keyed(app, work, when_store_down="run"), 7).state == "IGNORED"
    assert bank.booked() == []


def test_a_store_that_is_away_at_the_end_decides_nothing(app: Celery, bank: Bank, monkeypatch: Any) -> None:
    """Whether the transaction was committed cannot be asked: the next delivery will see."""

    def work(x: int) -> Any:
        with bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, "booked")
        monkeypatch.setattr(bank.store, "committed", lambda *_, **__: (_ for _ in ()).throw(StoreUnavailable("away")))
        return "booked"

    task = keyed(app, work)
    assert run_here(task, 7).state == "IGNORED"
    monkeypatch.undo()
    assert len(published(app)) == 1
    assert run_here(task, 7).value == "booked"
    assert bank.booked() == [1]


def test_a_soft_limit_after_the_commit_undoes_nothing(app: Celery, bank: Bank, monkeypatch: Any) -> None:
    """It strikes while the store is asked whether the transaction was committed."""
    committed, struck = bank.store.committed, [False]

    def slow(*args: Any, **kwargs: Any) -> Any:
        if not struck[0]:
            struck[0] = True
            raise SoftTimeLimitExceeded
        return committed(*args, **kwargs)

    monkeypatch.setattr(bank.store, "committed", slow)

    def work(x: int) -> Any:
        with bank.transaction() as connection:
            return patterns.current_claim().commit_with(connection, "booked")

    assert run_here(keyed(app, work), 7).value == "booked"
    assert struck == [True]


def test_a_result_that_is_no_json_is_committed_without_it(app: Celery, bank: Bank) -> None:
    """The work is done and is not done again; a duplicate is told why it gets nothing."""

    def work(x: int) -> Any:
        with bank.transaction() as connection:
            return patterns.current_claim().commit_with(connection, object())

    task = keyed(app, work)
    run_here(task, 7)
    assert type(run_here(task, 7).value).__name__ == "ResultNotKept"
    assert bank.booked() == [1]


def test_a_result_that_is_too_large_is_committed_without_it(app: Celery, bank: Bank) -> None:
    """As one that is no JSON: the work stands, and is not done again."""

    def work(x: int) -> Any:
        with bank.transaction() as connection:
            return patterns.current_claim().commit_with(connection, "x" * 2000)

    task = keyed(app, work, max_result_bytes=1024)
    run_here(task, 7)
    assert type(run_here(task, 7).value).__name__ == "ResultNotKept"
    assert bank.booked() == [1]


def test_a_failure_after_the_commit_is_not_remembered(app: Celery, bank: Bank) -> None:
    """The work was done, and its result is what each duplicate gets; also the replay of the letter, which forgets nothing."""

    def work(x: int) -> Any:
        with bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, "booked")
        raise ValueError

    task = keyed(app, work, dead_letter("dead"), remember=ValueError)
    assert type(run_here(task, 7, task_id="a").value) is ValueError
    (letter,) = published(app, "dead")
    assert run_here(task, 7, headers=letter["headers"]).value == "booked"
    assert run_here(task, 7).value == "booked"
    assert bank.booked() == [1]


def test_a_failure_that_rolls_back_is_remembered(app: Celery, bank: Bank) -> None:
    """Nothing has happened but the failure; its letter's replay runs."""

    def work(x: int) -> Any:
        with bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, "booked")
            if patterns.current_call().id == "a":
                raise ValueError
            return "booked"

    task = keyed(app, work, dead_letter("dead"), remember=ValueError)
    assert type(run_here(task, 7, task_id="a").value) is ValueError
    assert type(run_here(task, 7, task_id="b").value).__name__ == "FailedBefore"
    assert bank.booked() == []
    (letter,) = published(app, "dead")
    assert run_here(task, 7, headers={HEADER: letter["headers"][HEADER]}).value == "booked"
    assert bank.booked() == [1]


def test_in_eager_mode_the_body_runs_as_it_is(app: Celery, bank: Bank) -> None:
    """Nothing is claimed, and so nothing recorded: a test of the task's own needs no store."""

    def work(x: int) -> Any:
        with bank.transaction() as connection:
            return patterns.current_claim().commit_with(connection, x)

    task = keyed(app, work)
    assert (task.apply((7,)).get(), task.apply((7,)).get(), bank.booked()) == (7, 7, [1, 1])


def test_two_runs_of_one_key_book_once(app: Celery, bank: Bank) -> None:
    """The one that stood still wakes up after the other has booked, and commits nothing."""
    store, me, heir = bank.store, Attempt("a/0", 0, "me"), Attempt("a/0", 0, "heir")
    spans = {"lease": timedelta(milliseconds=1), "ttl": DAY}
    first = store.claim("k", me, "fp", **spans)
    assert isinstance(first, Claimed)
    second = wait_until(lambda: isinstance(held := store.claim("k", heir, "fp", **spans), Claimed) and held, 5, "over")
    assert isinstance(second, Claimed)
    with bank.transaction() as connection:
        assert store.commit(connection, "k", heir, "fp", second.fence, b'"heir"', ttl=DAY)
    for fence in (first.fence, second.fence):
        with contextlib.suppress(ClaimLost), bank.transaction() as connection:
            if not store.commit(connection, "k", me, "fp", fence, b'"me"', ttl=DAY):
                raise ClaimLost
    assert store.claim("k", me, "fp", **spans) == Done(b'"heir"')
    assert bank.booked() == [1]


def test_a_letter_of_work_that_was_rolled_back_can_be_replayed(app: Celery, bank: Bank) -> None:
    """A final failure frees the key, as ever."""

    def work(x: int) -> Any:
        with bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, x)
            raise ValueError("no")

    task = keyed(app, work, dead_letter("dead", max_crashes=None))
    assert run_here(task, 7).state == "FAILURE"
    assert len(list(patterns.dead_letters(app, "dead"))) == 1
    with bank.engine.connect() as connection:
        assert connection.execute(sa.select(bank.store.table.c.state)).scalars().all() == ["free"]


# What a transaction of the body's own does to others


def test_open_transactions_take_the_renewer_no_time(bank: Bank) -> None:
    """The leases of other bodies in the process are renewed in time, however many transactions are open for how long."""
    if bank.kind == "sqlite":
        return  # it has one writer at a time
    app = Celery("threads", broker="memory://", set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, SQLStore(postgres_url(int(os.environ[POSTGRES]), "postgres"), table=bank.store.table.name))
    begun, over, plain = threading.Semaphore(0), threading.Event(), threading.Event()
    lost: list[Any] = []

    def work(x: int) -> Any:
        claim = patterns.current_claim()
        if x == 0:
            plain.set()
            while not over.wait(0.05):
                lost.append(isinstance(_claim(bank, claim.key), Claimed))
            return "plain"
        with bank.transaction() as connection:
            claim.commit_with(connection, x)
            begun.release()
            over.wait(30)
        return x

    task = keyed(app, work, lease=3)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda x=x: results.append(run_here(task, x).value)) for x in range(9)]
    for thread in threads:
        thread.start()
    assert plain.wait(20)
    for _ in range(8):
        assert begun.acquire(timeout=20)
    time.sleep(7)
    over.set()
    for thread in threads:
        thread.join(20)
    assert sorted(map(str, results)) == [*map(str, range(1, 9)), "plain"]
    assert True not in lost
    assert len(lost) > 20
    app.close()


def test_the_key_is_still_mine_in_the_open_transaction(app: Celery, bank: Bank) -> None:
    """Also when the lease is over; and no longer once it was rolled back and somebody else has the key."""
    told: list[Any] = []

    def work(x: int) -> Any:
        claim = patterns.current_claim()
        with contextlib.suppress(ValueError), bank.transaction() as connection:
            claim.commit_with(connection, "booked")
            wait_until(lambda: claim.expires_in == timedelta(0), 5, "the lease is over")
            begun = time.monotonic()
            told.append(claim.still_mine() or bank.kind == "sqlite")  # there it is not known: the file is locked
            told.append(time.monotonic() - begun < 1.5)
            raise ValueError
        told.append(claim.still_mine())
        bank.store.renew = lambda *_, **__: False  # type: ignore[method-assign]
        told.append(claim.still_mine())

    run_here(keyed(app, work, lease=0.4), 7)
    assert told == [True, True, True, False]


@pytest.mark.parametrize("how", ["refused by the database", "refused by us", "lost", "a soft limit"])
def test_a_body_that_makes_nothing_of_a_refusal_has_not_done_its_work(
    app: Celery, bank: Bank, how: str, monkeypatch: Any
) -> None:
    """It asked for its record to be committed, and returned without it."""
    errors: dict[str, Any] = {
        "refused by the database": sa.exc.OperationalError("UPDATE", {}, Exception("could not serialize access")),
        "refused by us": ConfigurationError("another database"),
        "a soft limit": SoftTimeLimitExceeded(),
    }

    def refuse(*_: Any, **__: Any) -> bool:
        if how == "lost":
            return False
        raise errors[how]

    monkeypatch.setattr(bank.store, "commit", refuse)

    def work(x: int) -> str:
        with contextlib.suppress(Exception), bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, "booked")
        return "booked"

    task = keyed(app, work)
    assert type(run_here(task, 7).value) is NotCommitted
    monkeypatch.undo()
    assert (run_here(task, 7).value, bank.booked()) == ("booked", [1])


def test_a_serialization_failure_is_the_bodys_own(app: Celery, bank: Bank) -> None:
    """Of a transaction that began before the lease was renewed; and the text of the error shows no result."""
    if bank.kind == "sqlite":
        return
    said: list[str] = []

    def work(x: int) -> str:
        claim = patterns.current_claim()
        with Session(bank.engine.execution_options(isolation_level="REPEATABLE READ")) as session:
            session.execute(sa.text(bank.book()))
            assert claim.still_mine()  # renewed meanwhile
            with pytest.raises(sa.exc.OperationalError) as caught:
                claim.commit_with(session, "a secret result")
            said.append(str(caught.value))
            session.rollback()
        with bank.transaction() as connection:
            return str(claim.commit_with(connection, "booked"))

    assert run_here(keyed(app, work), 7).value == "booked"
    assert "could not serialize access" in said[0]
    assert "secret" not in said[0]


def test_committed_work_is_done_however_late_the_body_ends(app: Celery, bank: Bank) -> None:
    """Also after the record's own time, and when it was deleted then."""

    def work(x: int) -> str:
        with bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, "booked")
        time.sleep(0.1)
        if x:
            assert bank.store.purge() > 0
        return "booked"

    own = idempotent(key="x", ttl=timedelta(milliseconds=50), lease=timedelta(seconds=30))
    task = app.task(shared=False, name="t", patterns=(own,))(work)
    assert [run_here(task, x).value for x in (0, 1)] == ["booked", "booked"]


@pytest.mark.parametrize("by", ["session", "connection", "django"])
def test_a_savepoint_is_refused(app: Celery, bank: Bank, by: str) -> None:
    """It can be rolled back while the work around it is committed; the transaction itself will do afterwards."""
    said: list[str] = []

    def work(x: int) -> str:
        claim = patterns.current_claim()
        with bank.transaction(by) as connection:
            nested: Any = (
                connection.begin_nested if by != "django" else partial(transaction.atomic, using=connection.alias)
            )
            with pytest.raises(ConfigurationError) as caught, nested():
                claim.commit_with(connection, "booked")
            said.append(str(caught.value))
            return str(claim.commit_with(connection, "booked"))

    assert run_here(keyed(app, work), 7).value == "booked"
    assert said[0].startswith("commit_with() was called in a savepoint")
    assert bank.booked() == [1]


def test_a_second_record_in_one_transaction_changes_nothing(app: Celery, bank: Bank) -> None:
    """What was recorded first stays."""

    def work(x: int) -> str:
        claim = patterns.current_claim()
        with bank.transaction() as connection:
            claim.commit_with(connection, "first")
            return str(claim.commit_with(connection, "second"))

    task = keyed(app, work)
    run_here(task, 7)
    assert (run_here(task, 7).value, bank.booked()) == ("first", [1])


def test_a_transaction_that_is_older_than_the_task_is_told(app: Celery, bank: Bank) -> None:
    """It does not see the key, which its database has."""
    if bank.kind == "sqlite":
        return
    old = Session(bank.engine.execution_options(isolation_level="REPEATABLE READ"))
    old.execute(sa.text("SELECT 1 FROM " + bank.books))

    def work(x: int) -> None:
        patterns.current_claim().commit_with(old, 1)

    ran = run_here(keyed(app, work), 7)
    assert isinstance(ran.value, ConfigurationError)
    assert "with a transaction that has begun after the task has" in str(ran.value)
    old.close()


def test_a_key_that_the_database_has_lost_cannot_be_committed(app: Celery, bank: Bank) -> None:
    """It was deleted by hand: the message waits, and the task runs again."""

    def work(x: int) -> None:
        if not bank.booked():
            with bank.engine.begin() as connection:
                connection.execute(sa.delete(bank.store.table))
        with bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, 1)

    task = keyed(app, work)
    assert run_here(task, 7).state == "IGNORED"
    assert bank.booked() == []


def test_a_lost_key_is_not_committed_work(app: Celery, bank: Bank) -> None:
    """The record was deleted by hand, and the body made nothing of the refusal: it has not done its work."""

    def work(x: int) -> str:
        with bank.engine.begin() as connection:
            connection.execute(sa.delete(bank.store.table))
        with contextlib.suppress(ClaimLost), bank.transaction() as connection:
            patterns.current_claim().commit_with(connection, "booked")
        return "booked"

    assert type(run_here(keyed(app, work), 7).value) is NotCommitted
    assert bank.booked() == []


def test_a_database_without_the_table_is_refused(app: Celery, bank: Bank, tmp_path: Path) -> None:
    """It is another one."""
    other = sa.create_engine(
        f"sqlite:///{tmp_path}/empty.db"
        if bank.kind == "sqlite"
        else new_database(int(os.environ[POSTGRES])).replace("postgresql", "postgresql+psycopg", 1)
    )

    def work(x: int) -> None:
        with other.begin() as connection:
            patterns.current_claim().commit_with(connection, 1)

    ran = run_here(keyed(app, work), 7)
    assert isinstance(ran.value, ConfigurationError)
    assert "found no table of the store's in the connection's database" in str(ran.value)
    other.dispose()


def test_sessions_that_have_no_connection_of_their_own_are_told_what_to_give(app: Celery, bank: Bank) -> None:
    """One that is bound to no one database, and one of asyncio's."""
    said: list[str] = []

    def work(x: int) -> None:
        for given in (Session(), AsyncSession(), type("Mine", (AsyncSession,), {})()):
            with pytest.raises(ConfigurationError) as caught:
                patterns.current_claim().commit_with(given, 1)
            said.append(str(caught.value))
        raise ValueError

    run_here(keyed(app, work), 7)
    assert "expected session.connection(bind_arguments=…)" in said[0]
    assert "got an AsyncSession; its run_sync() gives you one" in said[1]


def test_sqlites_transactions_by_hand_are_transactions(app: Celery, bank: Bank) -> None:
    """The driver commits each statement by itself, unless one was begun."""
    if bank.kind != "sqlite":
        return
    by_hand = sa.create_engine(bank.url)
    sa.event.listen(by_hand, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
    sa.event.listen(by_hand, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))

    def work(x: int) -> Any:
        with by_hand.begin() as connection:
            connection.execute(sa.text(bank.book()))
            return patterns.current_claim().commit_with(connection, "booked")

    task = keyed(app, work)
    assert (run_here(task, 7).value, run_here(task, 7).value, bank.booked()) == ("booked", "booked", [1])
    by_hand.dispose()


def test_a_row_that_is_locked_is_somebodys(app: Celery, bank: Bank) -> None:
    """Also with ``when_store_down="run"``: the store is not away, and another run is about to have the key."""
    if bank.kind == "sqlite":
        return
    ran: list[int] = []

    def work(x: int) -> None:
        ran.append(x)
        raise ValueError

    task = keyed(app, work, when_store_down="run")
    run_here(task, 7)
    with bank.engine.connect() as connection:
        connection.execute(sa.update(bank.store.table).values(owner="somebody"))
        assert run_here(task, 7).state == "IGNORED"
    assert ran == [7]
