"""A step of the store in SQL is several statements, and yet one step: whatever comes in between, and wherever it is killed.

Two steps are run in every order of their statements, from every kind of row. What they answer, and what then stands, must be
what one of the two orders of whole steps gives. What holds for whole steps, the other suites show.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import greenlet
import pytest
import sqlalchemy as sa

from celery_patterns.exceptions import StoreUnavailable
from celery_patterns.stores import SQLStore
from celery_patterns.stores._marks import run_digest
from celery_patterns.stores._record import Record
from celery_patterns.stores._sql._table import FIELDS
from celery_patterns.typing import Attempt, Claimed, Done, Ended, Running

from .conftest import POSTGRES
from .servers import postgres_url

LEASE, TTL = timedelta(hours=1), timedelta(days=1)
MINE, HERS = Attempt("a/0", 0, "mine"), Attempt("b/0", 0, "hers")
COPY, NEXT = Attempt("a/0", 0, "copy"), Attempt("a/0", 1, "next", ("mine",))

OVER, LATER = 1, 4 * 10**15
_HELD = Record("running", "mine", run_digest("a/0"), 0, 7, 1, "fp", LATER, LATER)

#: The rows that a key can have.
ROWS: dict[str, Record | None] = {
    "none": None,
    "held": _HELD,
    "held, the lease over": replace(_HELD, lease_ends=OVER),
    "held, expired": replace(_HELD, lease_ends=OVER, expires=OVER),
    "free": Record(fence=7, marks=f"{run_digest('a/0')}:0:h;", expires=LATER),
    "done": Record("done", "mine", fence=7, fingerprint="fp", expires=LATER, result=b"1"),
}

Step = Callable[[SQLStore], Any]


def _claim(who: Attempt) -> Step:
    return lambda store: store.claim("k", who, "fp", lease=LEASE, ttl=TTL)


#: What can be done to it.
STEPS: dict[str, Step] = {
    "mine claims": _claim(MINE),
    "its copy claims": _claim(COPY),
    "its next attempt claims": _claim(NEXT),
    "hers claims": _claim(HERS),
    "mine renews": lambda store: store.renew("k", MINE, 7, lease=LEASE, ttl=TTL),
    "mine completes": lambda store: store.complete("k", MINE, "fp", 7, b'"mine"', ttl=TTL),
    "hers completes": lambda store: store.complete("k", HERS, "fp", 7, b'"hers"', ttl=TTL),
    "mine fails": lambda store: store.release("k", MINE, 7, ended=Ended(failed=True), ttl=TTL),
    "mine goes back": lambda store: store.release("k", MINE, 7, ended=None, ttl=TTL),
    "purged": lambda store: store.purge(),
}


class Orders:
    """Runs steps in every order of their statements, each time from the same row."""

    def __init__(self, store: SQLStore) -> None:
        self.store = store
        self._ask = store._database.ask
        self.runs = 0

    def put(self, record: Record | None) -> None:
        self._ask(sa.delete(self.store.table), {})
        if record is not None:
            assert self.store._is_written("k", None, record)
            # As one that was written long ago: SQLite counts milliseconds, and a row of this one is none that comes after it.
            self._ask(sa.update(self.store.table).values(version=1), {})

    def stands(self, before: Record | None) -> Any:
        rows = self._ask(self.store._statements.look, {"its_key": "k"})
        row = rows[0]
        if row.version is None:
            return None
        found = Record(*(getattr(row, name) for name in FIELDS))
        assert found.fence >= (before.fence if before else 0)
        return replace(
            found,
            fence=7 if found.fence == 7 else 8,
            lease_ends=LATER if found.lease_ends > row.now else OVER,
            expires=LATER if found.expires > row.now else OVER,
        )

    def one_after_the_other(self, before: Record | None, steps: list[Step]) -> Any:
        self.put(before)
        answers = [_told(step(self.store)) for step in steps]
        return answers, self.stands(before)

    def all_ways(
        self, before: Record | None, steps: tuple[Step, ...], *, kill: bool
    ) -> Iterator[tuple[Any, list[int]]]:
        """What comes of each order; with ``kill``, the first step is killed before each of its statements, too."""
        todo: list[list[int]] = [[]]
        while todo:
            way = todo.pop()
            answers, choices, taken = self._run(before, steps, way, kill)
            for at in range(len(way), len(taken)):
                todo += [[*taken[:at], other] for other in choices[at] if other != taken[at]]
            yield (answers, self.stands(before)), taken

    def _run(self, before: Record | None, steps: tuple[Step, ...], way: list[int], kill: bool) -> Any:
        self.put(before)
        self.runs += 1
        answers: list[Any] = [None] * len(steps)
        root = greenlet.getcurrent()

        def act(number: int) -> None:
            answers[number] = _told(steps[number](self.store))

        acting = [greenlet.greenlet(act) for _ in steps]
        choices, taken = [], []

        def asked(statement: Any, values: Any) -> Any:
            if greenlet.getcurrent() is not root:
                root.switch()
            return self._ask(statement, values)

        self.store._database.ask = asked  # type: ignore[method-assign]
        try:
            for number, one in enumerate(acting):
                one.switch(number)  # up to its first statement
            while True:
                can = [number for number, one in enumerate(acting) if not one.dead]
                if not can:
                    return answers, choices, taken
                if kill and not acting[0].dead and "killed" not in taken:
                    can.append(-1)
                choice = way[len(taken)] if len(taken) < len(way) else can[0]
                choices.append(can)
                taken.append(choice)
                if choice == -1:
                    acting[0].throw(greenlet.GreenletExit)
                    answers[0] = "killed"
                else:
                    acting[choice].switch()
        finally:
            self.store._database.ask = self._ask  # type: ignore[method-assign]


def _told(answer: Any) -> Any:
    """An answer, without what only the clock decides."""
    if isinstance(answer, Claimed):
        return ("claimed", answer.starts)
    if isinstance(answer, Running):
        return ("running", answer.same_run)
    if isinstance(answer, Done):
        return ("done", answer.result, answer.ours)
    return answer


@contextmanager
def orders(kind: str, folder: Path) -> Iterator[Orders]:
    if kind == "sqlite":
        store = SQLStore(f"sqlite:///{folder}/keys.db")
        engine = store._database._engine
        sa.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF"))
    else:
        url = postgres_url(int(os.environ[POSTGRES]), "postgres")
        store = SQLStore(url, table=f"keys_{uuid.uuid4().hex}", patience=timedelta(seconds=0.3))
    store.create_table()
    store._claims = -(10**9)
    yield Orders(store)
    store._database._engine.dispose()


def _holds(made: Orders, row: str, names: tuple[str, ...], *, kill: bool) -> None:
    before, steps = ROWS[row], tuple(STEPS[name] for name in names)
    allowed = []
    for order in itertools.permutations(range(len(steps))):
        answers, stands = made.one_after_the_other(before, [steps[at] for at in order])
        allowed.append(([answers[order.index(at)] for at in range(len(steps))], stands))
    if kill:  # it was never begun, or has done all that it does
        allowed += [(["killed", *answers[1:]], stands) for answers, stands in list(allowed)]
        answers, stands = made.one_after_the_other(before, list(steps[1:]))
        allowed.append((["killed", *answers], stands))
    for got, way in made.all_ways(before, steps, kill=kill):
        assert list(got) in [list(one) for one in allowed], f"{row}: {names} in the order {way}"


#: Those that most steps change.
SOME = ["none", "held", "held, the lease over"]


@pytest.mark.parametrize("row", [row if row in SOME else pytest.param(row, marks=pytest.mark.long) for row in ROWS])
def test_two_steps_are_two_whole_steps(row: str, tmp_path: Path) -> None:
    """In every order of their statements, from every row, the first of them also killed anywhere."""
    with orders("sqlite", tmp_path) as made:
        for names in itertools.combinations_with_replacement(STEPS, 2):
            _holds(made, row, names, kill=True)
        assert made.runs > 200


@pytest.mark.parametrize("row", ["held", "held, the lease over"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_while_a_transaction_is_open(name: str, row: str, tmp_path: Path) -> None:
    """Of a row that a task's own transaction has changed: it takes nothing, changes nothing, and does not wait."""
    before, step = ROWS[row], STEPS[name]
    with orders("postgresql", tmp_path) as made:
        made.put(before)
        engine = sa.create_engine(made.store._database._engine.url)
        with engine.connect() as connection:
            assert made.store.commit(connection, "k", MINE, "fp", 7, b'"in a transaction"', ttl=TTL)
            try:
                answer = step(made.store)  # to wait for the lock would be to wait for ever
            except StoreUnavailable as error:
                assert error.locked
                answer = error
        engine.dispose()
        whole = made.one_after_the_other(before, [step])[0][0]
        assert isinstance(answer, StoreUnavailable | Running) or _told(answer) == whole
        assert not isinstance(answer, Claimed | Done) or name == "mine claims"


@pytest.mark.parametrize("row", ["held", "held, the lease over"])
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_what_stands_after_the_transaction(ends: str, row: str, tmp_path: Path) -> None:
    """Whatever was asked meanwhile, the work is done, or the key is as it was."""
    with orders("postgresql", tmp_path) as made:
        engine = sa.create_engine(made.store._database._engine.url)
        for step in STEPS.values():
            made.put(ROWS[row])
            with engine.connect() as connection:
                assert made.store.commit(connection, "k", MINE, "fp", 7, b'"mine"', ttl=TTL)
                with contextlib.suppress(StoreUnavailable):
                    step(made.store)
                getattr(connection, ends)()
            stands = made.stands(ROWS[row])
            if ends == "rollback":
                assert stands == ROWS[row]
            else:
                assert (stands.state, stands.owner, stands.result) == ("done", "mine", b'"mine"')
        engine.dispose()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("row", ROWS)
def test_on_another_server_too(row: str, tmp_path: Path) -> None:
    """PostgreSQL."""
    with orders("postgresql", tmp_path) as made:
        for names in itertools.product(STEPS, STEPS):
            _holds(made, row, names, kill=True)
        assert made.runs > 400


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("row", ROWS)
def test_three_steps_are_three_whole_steps(row: str, tmp_path: Path) -> None:
    """And with a third worker."""
    with orders("sqlite", tmp_path) as made:
        for names in itertools.combinations_with_replacement(STEPS, 3):
            _holds(made, row, names, kill=False)
        assert made.runs > 2000
