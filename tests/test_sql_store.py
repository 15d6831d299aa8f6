"""The store in SQL as a client: its statements, its table, its connections, and servers that are away."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from sqlalchemy.pool import NullPool

from celery_patterns import idempotent, use_patterns, use_store
from celery_patterns.exceptions import ConfigurationError, StoreUnavailable
from celery_patterns.stores import SQLStore
from celery_patterns.stores._marks import run_digest
from celery_patterns.stores._record import Record
from celery_patterns.stores._sql import _database, _store
from celery_patterns.stores._sql._table import written
from celery_patterns.typing import Attempt, Claimed, Done, Running

from .cable import Cable
from .conftest import POSTGRES
from .here import run_here, soft_limit
from .servers import PostgresServer, free_port, postgres_url, wait_until

LEASE, TTL = timedelta(milliseconds=400), timedelta(seconds=3)
DAY = timedelta(days=1)


@pytest.fixture(params=["postgresql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/keys.db"
    return str(request.getfixturevalue("postgres"))


@pytest.fixture
def store(url: str) -> SQLStore:
    made = SQLStore(url)
    made.create_table()
    return made


@contextmanager
def said_to(store: SQLStore) -> Iterator[list[str]]:
    """Every statement that goes to the database."""
    said: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement.split(maxsplit=1)[0])

    sa.event.listen(store._database._engine, "before_cursor_execute", note)
    yield said
    sa.event.remove(store._database._engine, "before_cursor_execute", note)


OTHER = Attempt("other/0", 0, "other")


def me(run_id: str = "a/0") -> Attempt:
    return Attempt(run_id, 0, uuid.uuid4().hex)


def claimed(store: SQLStore, key: str = "k", who: Attempt | None = None, lease: timedelta = DAY) -> Claimed:
    answer = store.claim(key, who or me(), "fp", lease=lease, ttl=DAY)
    assert isinstance(answer, Claimed)
    return answer


def test_a_task_costs_two_statements(store: SQLStore) -> None:
    """One before its body and one behind it; nothing when it is sent, and one for a duplicate more than it has to learn."""
    app = Celery("statements", broker="memory://", set_as_current=False)
    use_patterns(app)
    use_store(app, store)
    store._claims = 0

    @app.task(shared=False, name="t")
    @idempotent(key="x", ttl=DAY)
    def t(x: int) -> int:
        return x

    with closing(app), said_to(store) as said:
        t.delay(1)
        assert said == []
        run_here(t, 1)
        assert said == ["INSERT", "UPDATE"]
        run_here(t, 1)
        assert said[2:] == ["INSERT", "SELECT"]


def test_each_statement_is_a_transaction(store: SQLStore) -> None:
    """Nothing is locked, and no connection is in a transaction, while a body runs."""
    claimed(store)
    other = sa.create_engine(store._database._engine.url)
    with other.begin() as connection:
        if store._database.kind == "postgresql":
            state = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
            assert connection.execute(sa.text(state)).scalar() == 0
        connection.execute(sa.update(store.table).values(owner="x"))
    other.dispose()


def test_the_table_can_be_made_by_hand(store: SQLStore, url: str) -> None:
    """What ``ddl()`` prints makes the table that Alembic expects; to make it twice does no harm."""
    with store._database._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), store.table.metadata) == []
    store.create_table()
    by_hand = SQLStore(url, table="by_hand")
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as raw:
            raw.executescript(by_hand.ddl())
    else:
        with psycopg.connect(url, autocommit=True) as raw:
            raw.execute(by_hand.ddl())
    with by_hand._database._engine.connect() as connection:
        ours = MigrationContext.configure(connection, opts={"include_name": lambda name, *_: name != store.table.name})
        assert compare_metadata(ours, by_hand.table.metadata) == []
    claimed(by_hand)


def test_the_table_stands_in_the_schema_of_the_search_path(postgres: str) -> None:
    """Made, found and looked for there, beside one of the same name in another schema."""
    with psycopg.connect(postgres, autocommit=True) as raw:
        for schema in ("one", "two"):
            raw.execute(f"CREATE SCHEMA {schema}")
    one, two = [SQLStore(f"{postgres}?options=-csearch_path%3D{schema}") for schema in ("one", "two")]
    for store in (one, two):
        store.create_table()
        claimed(store)
        assert [record.key for record in store.records()] == ["k"]
    with psycopg.connect(postgres) as raw:
        made = raw.execute("SELECT schemaname FROM pg_tables WHERE tablename = %s", [one.table.name]).fetchall()
    assert sorted(made) == [("one",), ("two",)]


def test_many_processes_make_the_table_at_once(url: str) -> None:
    """One of them makes it, and none fails."""
    stores = [SQLStore(url, table="at_once") for _ in range(8)]
    ready, wrong = threading.Barrier(8), []

    def make(store: SQLStore) -> None:
        ready.wait(20)
        try:
            store.create_table()
        except StoreUnavailable as error:
            wrong.append(error)

    threads = [threading.Thread(target=make, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    claimed(stores[0])


def test_a_table_that_is_there_is_only_looked_at(store: SQLStore) -> None:
    """No lock is waited for that an open transaction holds, and no right is needed to make one."""
    if store._database.kind == "sqlite":
        return
    who = me()
    held = claimed(store, who=who)
    engine = sa.create_engine(store._database._engine.url)
    with engine.begin() as connection:
        assert store.commit(connection, "k", who, "fp", held.fence, None, ttl=DAY)
        with said_to(store) as said:
            store.create_table()
        assert set(said) == {"SELECT"}
    engine.dispose()


def test_a_table_that_is_missing_is_named_with_the_cure(url: str) -> None:
    """At the first step, and soon."""
    store = SQLStore(url, table="nowhere", patience=timedelta(seconds=0.2))
    with pytest.raises(StoreUnavailable, match=r"SQLStore\(…\)\.create_table\(\).*nowhere"):
        claimed(store)


def test_rows_that_have_expired_are_deleted_as_keys_are_claimed(store: SQLStore, monkeypatch: Any) -> None:
    """Each process does it by itself, in batches, and leaves the others."""
    monkeypatch.setattr(_store, "PURGE_EVERY", 20)
    monkeypatch.setattr(_store, "PURGED", 40)
    for number in range(70):
        who = me()
        held = claimed(store, f"old-{number}", who)
        store.complete(f"old-{number}", who, "fp", held.fence, b"1", ttl=timedelta(milliseconds=1))
    time.sleep(0.02)
    store._claims = 0
    for number in range(40):
        claimed(store, f"new-{number}")
    with store._database._engine.connect() as connection:
        keys = connection.execute(sa.select(store.table.c.key)).scalars().all()
    assert sorted(keys) == sorted(f"new-{number}" for number in range(40))


def test_all_that_has_expired_can_be_deleted_at_once(store: SQLStore) -> None:
    """And counted."""
    store._claims = 0
    for number in range(30):
        store.claim(f"k-{number}", me(), "fp", lease=timedelta(microseconds=1), ttl=timedelta(microseconds=1))
    claimed(store)
    time.sleep(0.02)
    assert (store.purge(), store.purge()) == (30, 0)
    assert isinstance(store.claim("k", me("b/0"), "fp", lease=DAY, ttl=DAY), Running)


def test_a_server_that_is_away_is_store_unavailable_and_soon() -> None:
    """Within the store's patience, and no password is shown."""
    store = SQLStore(f"postgresql://me:hunter2@127.0.0.1:{free_port()}/db", patience=timedelta(seconds=0.3))
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        claimed(store)
    assert time.monotonic() - begun < 3
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r} {store!r}"


def test_no_value_is_shown_in_an_error(store: SQLStore) -> None:
    """A result is the user's."""
    store._database.ask(sa.text(f"DROP TABLE {store.table.name}"), {})
    with pytest.raises(StoreUnavailable) as caught:
        store.complete("k", me(), "fp", 1, b"a secret result", ttl=DAY)
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__cause__}"


def test_a_server_that_was_restarted_is_found_again() -> None:
    """Its old connections are replaced, within one step."""
    with closing(PostgresServer()) as server:
        server.start()
        store = SQLStore(server.url(), patience=timedelta(seconds=5))
        store.create_table()
        who = me()
        held = claimed(store, who=who)
        server.stop()
        with pytest.raises(StoreUnavailable):
            SQLStore(server.url(), patience=timedelta(0)).claim("k", me(), "fp", lease=DAY, ttl=DAY)
        server.start()
        assert store.complete("k", who, "fp", held.fence, b"1", ttl=DAY) == Done(b"1")


def test_a_database_that_is_not_there_is_named() -> None:
    """The server's own words are the reason."""
    url = postgres_url(int(os.environ[POSTGRES]), "none_of_these")
    with pytest.raises(StoreUnavailable, match='"none_of_these" does not exist'):
        claimed(SQLStore(url, patience=timedelta(seconds=0.2)))


def test_a_server_that_only_reads_is_left(postgres: str) -> None:
    """A standby that a worker met during a failover: the connection is not kept."""
    store = SQLStore(postgres, patience=timedelta(seconds=5))
    store.create_table()
    name = sa.make_url(postgres).database
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        store._database._let_all_go()
        with pytest.raises(StoreUnavailable, match="read-only"):
            SQLStore(postgres, patience=timedelta(0)).claim("k", me(), "fp", lease=DAY, ttl=DAY)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(claimed(store)))
        asking.start()
        time.sleep(0.3)
        admin.execute("SET default_transaction_read_only = off")
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        asking.join(20)
    assert [type(answer) for answer in answers] == [Claimed]


def test_a_time_limit_leaves_no_lock_behind(store: SQLStore) -> None:
    """SQLAlchemy's own pool takes locks, and is not used: another thread, as the one that renews leases, is answered."""
    assert isinstance(store._database._engine.pool, NullPool)
    for turn in range(40):
        with contextlib.suppress(SoftTimeLimitExceeded), soft_limit(0.0003 * (turn + 1)):
            for _ in range(20):
                store.renew("k", OTHER, 7, lease=DAY, ttl=DAY)
    answers: list[Any] = []
    renewing = threading.Thread(
        target=lambda: answers.append(store.renew("k", OTHER, 7, lease=DAY, ttl=DAY)), daemon=True
    )
    renewing.start()
    renewing.join(20)
    assert answers == [False]
    assert len(store._database._free) <= 2


def test_a_purge_that_fails_does_no_harm_to_a_claim(store: SQLStore, monkeypatch: Any) -> None:
    """What has expired may be deleted by the next one."""
    monkeypatch.setattr(store._statements, "purge", sa.text("DELETE FROM nowhere WHERE :limit = 1"))
    store._claims = _store.PURGE_EVERY
    claimed(store)


def test_a_network_that_is_cut_and_whole_again(postgres: str) -> None:
    """The step that was under way is asked again on a new connection."""
    port = int(os.environ[POSTGRES])
    with closing(Cable(port)) as cable:
        store = SQLStore(postgres.replace(f":{port}/", f":{cable.port}/"), patience=timedelta(seconds=10))
        store.create_table()
        claimed(store, "before")
        answers: list[Any] = []
        with cable.cut():
            asking = threading.Thread(target=lambda: answers.append(claimed(store, "meanwhile")))
            asking.start()
            time.sleep(0.5)
            assert answers == []
        asking.join(20)
        assert [answer.starts for answer in answers] == [1]


def test_a_child_of_a_fork_has_connections_of_its_own(url: str, tmp_path: Path) -> None:
    """Both go on, each with its own answers."""
    code = f"""
import os, sys
from datetime import timedelta
from celery_patterns.stores import SQLStore
from celery_patterns.typing import Attempt, Claimed
store = SQLStore({url!r})
store.create_table()
def work(who):
    for n in range(100):
        held = store.claim(f"{{who}}-{{n}}", Attempt(f"{{who}}/{{n}}", 0, f"{{who}}-{{n}}"), "fp", lease=timedelta(days=1), ttl=timedelta(days=1))
        assert isinstance(held, Claimed), held
work("before")
child = os.fork()
work("child" if child == 0 else "parent")
if child:
    sys.exit(os.waitpid(child, 0)[1])
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_share_a_store_and_get_their_own_answers(store: SQLStore) -> None:
    """One of them has each key."""
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(20):
            key, who = f"k-{number}-{turn}", Attempt(f"run-{number}-{turn}", 0, f"me-{number}")
            held = store.claim(key, who, "fp", lease=DAY, ttl=DAY)
            done = store.complete(key, who, "fp", held.fence, key.encode(), ttl=DAY)  # type: ignore[union-attr]
            again = store.claim(key, Attempt("other", 0, "you"), "fp", lease=DAY, ttl=DAY)
            if not (done == again == Done(key.encode())):
                wrong.append(f"{key}: {held} {done} {again}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_no_more_connections_are_kept_than_some(store: SQLStore, monkeypatch: Any) -> None:
    """Many threads that ask at once open one each, and most are closed again."""
    monkeypatch.setattr(_database, "KEPT", 3)
    ready = threading.Barrier(12)

    def ask(number: int) -> None:
        ready.wait(20)
        for turn in range(5):
            claimed(store, f"k-{number}-{turn}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 1 <= len(store._database._free) <= 5  # two may be given back at the same moment


def test_no_result_is_read_where_keys_are_looked_through(store: SQLStore) -> None:
    """It may be large, and is the user's."""
    who = me()
    store.complete("k", who, "fp", claimed(store, who=who).fence, b"x" * 100_000, ttl=DAY)
    rows = store._database.ask(store._statements.page, {"after": "", "beginning": "", "limit": 10})
    assert [len(str(row)) < 1000 for row in rows] == [True]


def test_of_many_who_ask_for_one_key_one_has_it(store: SQLStore) -> None:
    """At the same moment, when it is new, and when its owner is dead."""
    for key, lease in (("new", None), ("dead", timedelta(microseconds=1))):
        if lease is not None:
            store.claim(key, me(), "fp", lease=lease, ttl=DAY)
        ready, answers = threading.Barrier(8), []

        def ask(key: str = key, ready: Any = ready, answers: list[Any] = answers) -> None:
            ready.wait(20)
            answers.append(store.claim(key, me(uuid.uuid4().hex), "fp", lease=DAY, ttl=DAY))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(type(answer).__name__ for answer in answers) == ["Claimed", *["Running"] * 7]


def test_who_inserts_a_moment_too_late_is_told_who_has_the_key(postgres: str) -> None:
    """Both have seen that there is no row: PostgreSQL lets the second one wait for the first, and then it looks again."""
    store = SQLStore(postgres)
    store.create_table()
    first = Record("running", "first", run_digest("first/0"), 0, starts=1, fingerprint="fp")
    values = {"its_key": "k", **written(first), "lease": 60_000_000, "ttl": 60_000_000}
    answers: list[Any] = []
    late = threading.Thread(target=lambda: answers.append(store.claim("k", me(), "fp", lease=LEASE, ttl=DAY)))
    engine = sa.create_engine(store._database._engine.url)
    waits = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with engine.connect() as connection, engine.connect() as looks:
        connection.execute(store._statements.claim, values)
        late.start()
        wait_until(lambda: looks.execute(waits).scalar(), 20, "the second one waits")
        connection.commit()
    late.join(20)
    assert [type(answer) for answer in answers] == [Running]
    engine.dispose()


def test_a_soft_limit_between_question_and_answer(store: SQLStore) -> None:
    """The answer does not become the next question's."""
    right = 0
    for turn in range(60):
        who = me()
        try:
            with soft_limit(0.0002 * (turn % 20 + 1)):
                store.claim(f"k-{turn}", who, "fp", lease=DAY, ttl=DAY)
                time.sleep(0.01)
        except SoftTimeLimitExceeded:
            pass
        answer = store.claim(f"k-{turn}", who, "fp", lease=DAY, ttl=DAY)
        assert isinstance(answer, Claimed)
        right += store.complete(f"k-{turn}", who, "fp", answer.fence, str(turn).encode(), ttl=DAY) == Done(
            str(turn).encode()
        )
    assert right == 60


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mysql://me:secret@host/db", "got one of scheme 'mysql'"),
        ("postgresql+psycopg2://me:secret@host/db", "got one of scheme 'postgresql+psycopg2'"),
        ("sqlite://", "a database in memory is another one in each process"),
        ("sqlite:///:memory:", "or MemoryStore() in a test"),
        ("sqlite:///file::memory:?uri=true", "a database in memory is another one in each process"),
        ("sqlite:///file:shop?mode=memory&uri=true", "a database in memory is another one in each process"),
        ("postgresql://me:very@secret@host/db", "with @ as %40 where it is in the password, got one with several @"),
        ("postgresql://me:a@secret/b@host/db", "with @ as %40 where it is in the password, got one with several @"),
        ("postgresql://me:a@b?secret@host/db", "with @ as %40 where it is in the password, got one with several @"),
        ("postgresql://me:secret@host/db?nonsense=1", 'connections know: invalid connection option "nonsense"'),
        ("postgresql://me@host/db?password=a&secret=1", "to be such as PostgreSQL's connections know"),
        ("postgresql://me:secret@host/db?prepare_threshold=5", 'invalid connection option "prepare_threshold"'),
        ("secret", "got one without ://"),
        ("postgresql://me:secret@host:port/db", "cannot be read"),
    ],
)
def test_another_url_is_refused(given: str, said: str) -> None:
    """It says what was expected, and shows no password."""
    with pytest.raises(ConfigurationError, match=re.escape(said)) as caught:
        SQLStore(given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://me:a%40b@host/c%40d",
        "postgresql://me:a/b@host/db",
        "postgresql+psycopg://[::1]/db",
        "postgresql://host/db?sslmode=&host=other&service=shop&connect_timeout=3&application_name=a@b",
        "sqlite:////a/b:memory:c.db",
    ],
)
def test_a_url_that_the_driver_reads_is_taken(given: str) -> None:
    """Nothing is connected yet."""
    assert isinstance(SQLStore(given), SQLStore)


@pytest.mark.parametrize(
    ("name", "value"), [("table", ""), ("table", 7), ("table", "shop.keys"), ("patience", 2), ("patience", -LEASE)]
)
def test_a_wrong_option_is_refused(name: str, value: Any) -> None:
    """When the store is made."""
    with pytest.raises(ConfigurationError, match=f"expected {name} to be"):
        SQLStore("sqlite:////a/file", **{name: value})


def test_a_driver_that_cannot_be_loaded_is_named_with_its_reason() -> None:
    """As psycopg where the library that it speaks through is missing; and what to install."""
    code = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "psycopg":
            raise ImportError("no pq wrapper available.\\nAttempts made: ...")
sys.meta_path.insert(0, Broken())
from celery_patterns.stores import SQLStore
SQLStore("postgresql://me:secret@host/db")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    said = done.stderr.strip().splitlines()[-1]
    assert "cannot be used: ImportError: no pq wrapper available.; expected psycopg to be installed" in said
    assert "'psycopg[binary]'" in said
    assert "secret" not in done.stderr


def test_without_sqlalchemy_the_store_says_what_to_install() -> None:
    """And the rest of the library works without it."""
    code = """
import sys
sys.modules["sqlalchemy"] = None
import celery_patterns
from celery_patterns.exceptions import ConfigurationError
for ask in (lambda: celery_patterns.stores.SQLStore, lambda: celery_patterns.stores.open_store("sqlite:////a/file")):
    try:
        ask()
    except ConfigurationError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.count("pip install 'celery-patterns[sql]'") == 2


def test_it_is_loaded_only_where_it_is_wanted() -> None:
    """A producer that uses Redis imports no SQLAlchemy."""
    code = "import celery_patterns, sys; celery_patterns.stores.open_store('redis://'); sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
