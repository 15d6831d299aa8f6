"""A lease is renewed while its body runs, and its loss is told: in one process, and in every pool."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery import Celery
from celery._state import _task_stack
from celery.exceptions import Reject, WorkerTerminate

import celery_patterns as patterns
from celery_patterns import _bury, dead_letter, dead_letters, idempotent, retry
from celery_patterns._idempotent import _renewal
from celery_patterns._message import HEADER
from celery_patterns.exceptions import ClaimLost, ConfigurationError, PublishFailed, StoreUnavailable
from celery_patterns.stores import MemoryStore
from celery_patterns.typing import Attempt, Claimed

from .harness import Floor, wait_until
from .here import run_here, soft_limit
from .test_retry import published

DAY = timedelta(days=1)
LEASE = 0.6


class Watched(MemoryStore):
    """A store that tells what it was asked, and by which thread, and can be unplugged."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.asked: list[tuple[str, str]] = []
        self.answers: dict[str, Callable[[], Any]] = {}

    def _told(self, step: str, answer: Callable[[], Any]) -> Any:
        self.asked.append((step, threading.current_thread().name))
        if step in self.answers:
            self.answers[step]()
        return answer()

    def claim(self, *args: Any, **kwargs: Any) -> Any:
        return self._told("claim", lambda: super(Watched, self).claim(*args, **kwargs))

    def renew(self, *args: Any, **kwargs: Any) -> Any:
        return self._told("renew", lambda: super(Watched, self).renew(*args, **kwargs))

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        return self._told("complete", lambda: super(Watched, self).complete(*args, **kwargs))

    def renewals(self) -> int:
        return sum(step == "renew" for step, _ in self.asked)


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
def app(database: str, store: Watched) -> Iterator[Celery]:
    made = Celery("leases", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, store)
    with closing(made):
        yield made


def keyed(app: Celery, body: Any, *more: Any, lease: float = LEASE, name: str = "t") -> Any:
    own = idempotent(key="x", ttl=DAY, lease=timedelta(seconds=lease))
    return app.task(shared=False, name=name, patterns=(own, *more))(body)


def away() -> None:
    raise StoreUnavailable("unplugged")


def end_leases(store: MemoryStore) -> None:
    """Every lease is over, on the store's clock."""
    store._records = {key: dataclasses.replace(record, lease_ends=0) for key, record in store._records.items()}


def taken_over(store: Watched, key: str) -> Claimed:
    """Another run takes the key, as if this one had stood still."""
    end_leases(store)
    name = next(one for one in store._records if one.endswith(key))
    print_ = store._records[name].fingerprint
    answer = MemoryStore.claim(store, name, Attempt("other/0", 0, "other"), print_, lease=DAY, ttl=DAY)
    assert isinstance(answer, Claimed)
    return answer


def test_a_body_that_outlives_its_lease_keeps_its_key(app: Celery, store: Watched, caplog: Any) -> None:
    """It is renewed a third of a lease after it was taken, and so on, by one thread; a duplicate waits all the time."""
    seen = []

    def work(x: int) -> int:
        claim = patterns.current_claim()
        until = time.monotonic() + 3 * LEASE
        while time.monotonic() < until:
            seen.append((claim.expires_in.total_seconds(), run_here(task, 1).state))
            time.sleep(0.1)
        return x

    task = keyed(app, work)
    assert run_here(task, 1).value == 1
    assert {state for _, state in seen} == {"IGNORED"}
    assert min(left for left, _ in seen) > 0
    assert 5 <= store.renewals() <= 9
    assert {thread for step, thread in store.asked if step == "renew"} == {"celery-patterns-renewer"}
    assert "claim_lost" not in caplog.text
    told = len(store.asked)
    time.sleep(LEASE)
    assert len(store.asked) == told, "renewed after its end"


def test_a_short_body_asks_for_nothing_more(app: Celery, store: Watched) -> None:
    """Two steps each, and one thread for all of them, which sleeps."""

    def work(x: int) -> int:
        return x

    task = keyed(app, work, lease=3600)
    for number in range(300):
        assert run_here(task, number).value == number
    time.sleep(0.2)
    assert [step for step, _ in store.asked] == ["claim", "complete"] * 300
    assert [thread.name for thread in threading.enumerate()].count("celery-patterns-renewer") == 1


def test_a_short_lease_is_not_late_behind_a_long_one(app: Celery, store: Watched) -> None:
    """The thread that sleeps for an hour's lease is woken for one of less than a second."""

    def short(x: int) -> int:
        time.sleep(2 * LEASE)
        return x

    def long(x: int) -> Any:
        return run_here(inner, x).value

    inner = keyed(app, short, name="short")
    assert run_here(keyed(app, long, lease=3600, name="long"), 1).value == 1
    assert store.renewals() >= 4


def test_a_run_that_was_replaced_learns_it(app: Celery, store: Watched, caplog: Any) -> None:
    """In the log, from its claim, and at its end: its result is not the key's, and the other's is returned."""
    seen: dict[str, Any] = {}

    def work(x: int) -> str:
        claim = patterns.current_claim()
        seen["before"] = claim.still_mine()
        heir = taken_over(store, claim.key)
        wait_until(lambda: "claim_lost" in caplog.text, 5, "the renewer's word")
        seen["after"] = (claim.still_mine(), claim.expires_in)
        seen["fences"] = (claim.fence, heir.fence)
        name = f"t:{claim.key}"
        seen_as = store._records[name].fingerprint
        store.complete(name, Attempt("other/0", 0, "other"), seen_as, heir.fence, b'"the heir\'s"', ttl=DAY)
        return "the zombie's"

    task = keyed(app, work)
    assert run_here(task, 1).value == "the heir's"
    assert (seen["before"], seen["after"]) == (True, (False, timedelta(0)))
    assert seen["fences"][0] < seen["fences"][1]
    assert caplog.text.count("claim_lost") == 1


@pytest.mark.parametrize("how", ["fails", "retries", "asks by hand", "rejects"])
def test_no_other_end_of_a_replaced_run_counts(app: Celery, store: Watched, how: str) -> None:
    """Its message waits for the other run: no letter, no attempt beside that run's own, no acknowledgement without a copy."""

    def work(self: Any, x: int) -> None:
        taken_over(store, patterns.current_claim().key)
        assert not patterns.current_claim().still_mine()
        if how == "retries":
            raise ConnectionError
        if how == "asks by hand":
            raise self.retry(countdown=60)
        raise {"fails": ValueError("no"), "rejects": Reject("no")}[how]

    own = idempotent(key="x", ttl=DAY, lease=timedelta(seconds=LEASE), same=())
    more = (retry(on=ConnectionError), dead_letter("dead", max_crashes=None))
    task = app.task(shared=False, name="t", bind=True, patterns=(own, *more))(work)
    outcome = run_here(task, 1, task_id="zombie")
    assert outcome.state == "IGNORED"
    (copy,) = published(app)
    headers = copy["headers"]
    assert (headers["id"], headers["retries"], headers[HEADER]["looks"]) == ("zombie", 0, 1)
    assert list(dead_letters(app, "dead")) == []


@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("how", ["retries", "asks by hand"])
def test_the_next_attempt_of_a_replaced_run_takes_nothing(
    app: Celery, store: Watched, how: str, replaced: bool
) -> None:
    """It has the key at once from the run that sent it, and from no other that has it meanwhile."""
    heir = []

    def work(self: Any, x: int) -> str:
        if self.request.retries:
            return "done"
        if replaced:
            heir.append(taken_over(store, patterns.current_claim().key))
        store.release = lambda *_, **__: away()  # type: ignore[method-assign] # killed before it gives the key back
        raise ConnectionError if how == "retries" else self.retry(countdown=60)

    own = idempotent(key="x", ttl=DAY, lease=timedelta(seconds=LEASE), same=())
    task = app.task(shared=False, name="t", bind=True, patterns=(own, retry(on=ConnectionError)))(work)
    assert run_here(task, 1, task_id="zombie").state == "RETRY"
    del store.release
    (attempt,) = published(app)
    carried = {HEADER: attempt["headers"][HEADER]}
    after = run_here(task, 1, task_id="zombie", retries=1, headers=carried)
    assert (after.state, after.value if not replaced else None) == (
        ("IGNORED", None) if replaced else ("SUCCESS", "done")
    )


def test_a_run_that_nobody_replaced_fails_as_ever(app: Celery, store: Watched) -> None:
    """Its lease was over, and is asked for once more."""

    def work(x: int) -> None:
        store.answers["renew"] = away
        time.sleep(1.2 * LEASE)
        del store.answers["renew"]
        raise ValueError("no")

    outcome = run_here(keyed(app, work, dead_letter("dead", max_crashes=None)), 1)
    assert (outcome.state, str(outcome.value)) == ("FAILURE", "no")
    assert len(list(dead_letters(app, "dead"))) == 1


def test_a_failure_while_the_store_is_away_for_too_long(app: Celery, store: Watched, caplog: Any) -> None:
    """Whether it counts cannot be known: the message waits, and has the key at once when the store is back."""
    begun = []

    def work(x: int) -> str:
        begun.append(x)
        if len(begun) > 1:
            return "done"
        store.answers["renew"] = store.answers["claim"] = away
        time.sleep(1.2 * LEASE)
        raise ValueError("no")

    task = keyed(app, work, dead_letter("dead", max_crashes=None))
    assert run_here(task, 1, task_id="t-1").state == "IGNORED"
    (copy,) = published(app)
    store.answers.clear()
    again = run_here(task, 1, task_id="t-1", headers={HEADER: copy["headers"][HEADER]})
    assert (again.value, begun) == ("done", [1, 1])
    assert list(dead_letters(app, "dead")) == []
    assert "claim_taken_over" not in caplog.text
    assert not _renewal.renewer._held


@pytest.mark.parametrize("held", ["still", "no longer", "by another"])
def test_a_run_that_gives_up_is_no_failure(app: Celery, store: Watched, held: str, caplog: Any) -> None:
    """Whoever has the key then: the message waits, no attempt is used, and where nobody has it, it is had at once."""
    begun = []

    def work(x: int) -> str:
        begun.append(x)
        if len(begun) > 1:
            return "done"
        key = patterns.current_claim().key
        if held == "by another":
            taken_over(store, key)
            assert not patterns.current_claim().still_mine()
        if held == "no longer":
            taken_over(store, key)
            assert not patterns.current_claim().still_mine()
            end_leases(store)
        raise ClaimLost("gives up")

    task = keyed(app, work, retry(on=Exception), dead_letter("dead", max_crashes=None), lease=60)
    assert run_here(task, 1, task_id="t-1").state == "IGNORED"
    (copy,) = published(app)
    assert (copy["headers"]["retries"], list(dead_letters(app, "dead"))) == (0, [])
    again = run_here(task, 1, task_id="t-1", headers={HEADER: copy["headers"][HEADER]})
    assert (again.state, len(begun)) == (("IGNORED", 1) if held == "by another" else ("SUCCESS", 2))
    assert not _renewal.renewer._held


def test_a_wait_before_the_run_is_no_part_of_it(app: Celery, store: Watched) -> None:
    """What counts against ``wait_within`` is waiting: not how long a body ran that then gave up."""
    hour = time.time() - 59 * 60

    def work(x: int) -> None:
        patterns.current_call().started -= 25 * 60  # as if it had begun then
        raise ClaimLost("gives up")

    task = keyed(app, work, dead_letter("dead", max_crashes=None), lease=60)
    assert run_here(task, 1, headers={HEADER: {"waiting": hour + 10 * 60}}).state == "IGNORED"
    (copy,) = published(app)
    assert copy["headers"][HEADER]["waiting"] == pytest.approx(hour + 35 * 60, abs=5)


def test_the_copy_of_a_run_that_gave_up_does_not_stand(app: Celery, store: Watched, monkeypatch: Any) -> None:
    """The broker is away: the message goes back to its queue, and its key is free for it, as no crash."""

    def work(x: int) -> str:
        if not failed:
            failed.append(x)
            monkeypatch.setattr("celery_patterns._republish._send", refuse)
            raise ClaimLost("gives up")
        return "done"

    def refuse(*_: Any) -> None:
        raise PublishFailed("the broker is away", transient=True)

    failed: list[int] = []
    task = keyed(app, work, lease=60)
    outcome = run_here(task, 1, task_id="t-1")
    assert (outcome.state, outcome.value.requeue) == ("REJECTED", True)
    again = run_here(task, 1, task_id="t-1", redelivered=True)
    assert again.value == "done"


def test_a_result_that_cannot_be_recorded_after_the_key_was_lost(app: Celery, store: Watched) -> None:
    """It does not count: the message waits for the store, and for whoever has the key."""

    def work(x: int) -> str:
        taken_over(store, patterns.current_claim().key)
        assert not patterns.current_claim().still_mine()
        store.answers["complete"] = away
        return "the zombie's"

    assert run_here(keyed(app, work), 1).state == "IGNORED"
    assert len(published(app)) == 1


def test_a_replacement_stands_for_its_task(app: Celery, store: Watched) -> None:
    """Also when the key was lost: no copy waits beside it."""

    def work(self: Any, x: int) -> None:
        taken_over(store, patterns.current_claim().key)
        assert not patterns.current_claim().still_mine()
        raise self.replace(app.signature("other"))

    own = (idempotent(key="x", ttl=DAY),)
    task = app.task(shared=False, name="t", bind=True, patterns=own)(work)
    assert run_here(task, 1).state == "IGNORED"
    assert [one["headers"]["task"] for one in published(app)] == ["other"]


def test_a_handler_that_raises_stops_no_renewer(app: Celery, store: Watched) -> None:
    """What the log does to the thread is no reason to lose every key of the process."""

    class Broken(logging.Filter):
        def filter(self, _: logging.LogRecord) -> bool:
            raise ValueError("its own")

    def work(x: int) -> int:
        store.answers["renew"] = away
        time.sleep(LEASE)
        del store.answers["renew"]
        asked = store.renewals()
        wait_until(lambda: store.renewals() > asked, 5, "another renewal")
        return x

    broken, logger = Broken(), logging.getLogger("celery_patterns")
    logger.addFilter(broken)
    try:
        assert run_here(keyed(app, work), 1).value == 1
    finally:
        logger.removeFilter(broken)


def test_no_thread_can_be_started(app: Celery, store: Watched, caplog: Any, monkeypatch: Any) -> None:
    """The body runs, its lease ends when it ends, and that is told; the next key's claim tries again."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def work(x: int) -> int:
        return x

    task = keyed(app, work)
    monkeypatch.setattr(_renewal, "renewer", _renewal._Renewer())
    monkeypatch.setattr("celery_patterns._idempotent._held.renewer", _renewal.renewer)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        assert run_here(task, 1).value == 1
    assert "no thread can be started" in caplog.text
    assert run_here(task, 2).value == 2
    assert _renewal.renewer._thread is not None


def test_many_short_bodies_do_not_wake_the_renewer(app: Celery, store: Watched, monkeypatch: Any) -> None:
    """It is rung for once, and sleeps until that lease would be due."""
    fresh = _renewal._Renewer()
    monkeypatch.setattr(_renewal, "renewer", fresh)
    monkeypatch.setattr("celery_patterns._idempotent._held.renewer", fresh)
    rung = []

    def work(x: int) -> int:
        return x

    task = keyed(app, work, lease=3600)
    run_here(task, 0)
    put = fresh._bell.put
    monkeypatch.setattr(
        fresh, "_bell", SimpleNamespace(put=lambda due: (rung.append(due), put(due)), get=fresh._bell.get)
    )
    for number in range(1, 500):
        run_here(task, number)
    assert len(rung) <= 3


def test_whether_it_is_still_mine_is_asked_of_the_store(app: Celery, store: Watched, caplog: Any) -> None:
    """Before the renewer comes by; and it renews the lease on the way."""
    seen = []

    def work(x: int) -> None:
        claim = patterns.current_claim()
        time.sleep(0.05)
        before = claim.expires_in
        seen.append((claim.still_mine(), claim.expires_in > before))
        taken_over(store, claim.key)
        seen.append((claim.still_mine(), claim.expires_in == timedelta(0)))

    run_here(keyed(app, work, lease=60), 1)
    assert seen == [(True, True), (False, True)]
    assert caplog.text.count("claim_lost") == 1


def test_a_store_that_does_not_answer_has_promised_the_lease(app: Celery, store: Watched, caplog: Any) -> None:
    """Until it is over the key is ours; afterwards nobody knows. It is tried again, and each time is told."""
    seen = []

    def work(x: int) -> int:
        claim = patterns.current_claim()
        store.answers["renew"] = away
        seen.append(claim.still_mine())
        time.sleep(LEASE * 1.2)
        seen.append(claim.still_mine())
        del store.answers["renew"]
        seen.append(claim.still_mine())
        return x

    assert run_here(keyed(app, work), 1).value == 1
    assert seen == [True, False, True]
    assert 3 <= caplog.text.count("claim_not_renewed") <= 8
    assert "claim_lost" not in caplog.text
    assert ("WARNING", True) in [(r.levelname, "claim_not_renewed" in r.getMessage()) for r in caplog.records]


def test_a_store_of_the_users_that_fails_stops_no_renewer(app: Celery, store: Watched, caplog: Any) -> None:
    """Its error is logged; this lease and the others are renewed again."""
    failures = iter([ValueError("its own"), ValueError("its own")])

    def fail() -> None:
        for error in failures:
            raise error

    def work(x: int) -> int:
        store.answers["renew"] = fail
        time.sleep(2 * LEASE)
        return x

    assert run_here(keyed(app, work), 1).value == 1
    assert caplog.text.count("a lease could not be renewed") == 2
    assert store.renewals() >= 4


def test_a_renewal_that_meets_the_end_is_no_loss(app: Celery, store: Watched, caplog: Any) -> None:
    """The renewer asks while the run completes: the store refuses it after the record, and nobody calls that a loss."""
    asked, go = threading.Event(), threading.Event()

    def slow() -> None:
        asked.set()
        go.wait(5)

    def work(x: int) -> int:
        store.answers["renew"] = slow
        store.answers["complete"] = lambda: None
        asked.wait(5)
        return x

    task = keyed(app, work)
    assert run_here(task, 1).value == 1
    go.set()
    wait_until(lambda: store.renewals() and not _renewal.renewer._held, 5, "the late answer")
    time.sleep(0.1)
    assert "claim_lost" not in caplog.text
    assert run_here(task, 1).value == 1


@pytest.mark.parametrize("end", ["fails", "ends the worker", "asks again", "ends in its letter"])
def test_no_end_leaves_a_lease_behind(app: Celery, store: Watched, end: str, monkeypatch: Any) -> None:
    """A body that fails gives its key back; one that ends its worker leaves it to the lease: neither is renewed."""

    def work(self: Any, x: int) -> None:
        if end in ("fails", "ends in its letter"):
            raise ValueError
        if end == "ends the worker":
            raise WorkerTerminate(1)
        raise self.retry(countdown=60)

    own = (idempotent(key="x", ttl=DAY, lease=timedelta(seconds=LEASE)), dead_letter("dead", max_crashes=None))
    task = app.task(shared=False, name="t", bind=True, patterns=own)(work)
    if end == "ends in its letter":  # as a greenlet does whose time is over

        def terminate(*_: Any, **__: Any) -> None:
            raise WorkerTerminate(1)

        monkeypatch.setattr("celery_patterns._dead_letter.publish_letter", terminate)
    if end.startswith("ends"):
        with pytest.raises(WorkerTerminate):
            run_here(task, 1)
    else:
        run_here(task, 1)
    assert not _renewal.renewer._held
    time.sleep(LEASE * 0.6)
    assert store.renewals() == 0


def test_a_key_is_held_while_its_letter_is_written(app: Celery, store: Watched, monkeypatch: Any) -> None:
    """A broker that takes longer than the lease: no other run of the key begins meanwhile."""
    seen = []

    def work(x: int) -> None:
        raise ValueError

    task = keyed(app, work, dead_letter("dead", max_crashes=None))
    publish = _bury.publish_letter

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(1.5 * LEASE)
        seen.append(run_here(task, 1).state)
        return publish(*args, **kwargs)

    monkeypatch.setattr("celery_patterns._dead_letter.publish_letter", slowly)
    run_here(task, 1)
    assert seen == ["IGNORED"]
    assert store.renewals() >= 2


def test_a_forked_child_has_a_renewer_of_its_own(app: Celery, store: Watched) -> None:
    """It inherits neither the thread nor what its parent's bodies hold."""

    def work(x: int) -> int:
        time.sleep(2 * LEASE)
        return store.renewals()

    task = keyed(app, work)
    assert run_here(task, 1).value >= 4  # the parent's thread runs

    def nested(x: int) -> int:
        asked = store.renewals()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            held = len(_renewal.renewer._held)
            outcome = run_here(task, 2).value - store.renewals()
            os.write(writing, f"{held} {outcome} {store.renewals() - asked}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        held, outcome, renewed = map(int, os.read(reading, 100).split())
        assert (held, outcome) == (0, 0)
        return renewed

    assert 4 <= run_here(keyed(app, nested, lease=3600, name="nested"), 3).value <= 6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Celery's own steps are struck, too, and it says so
def test_a_soft_limit_while_the_key_is_taken(app: Celery, store: Watched) -> None:
    """Wherever it strikes, the next body is renewed all the same."""

    def work(x: int) -> int:
        return x

    task = keyed(app, work)
    run_here(task, 0)
    for number in range(1, 300):
        with contextlib.suppress(SoftTimeLimitExceeded), soft_limit(number * 0.000005):
            run_here(task, number)
        while _task_stack.top is not None:  # Celery's own end was struck
            _task_stack.pop()

    def long(x: int) -> int:
        time.sleep(LEASE)
        return store.renewals()

    before = store.renewals()
    assert run_here(keyed(app, long, name="long"), 1).value > before


def test_a_task_may_say_that_it_is_run_without_a_claim(app: Celery, store: Watched, caplog: Any) -> None:
    """While the store is away: the body has its key and a fence to hand on, and knows that nothing holds them."""
    seen = []

    def work(x: int) -> int:
        claim = patterns.current_claim()
        seen.append((len(claim.key), claim.fence > 1_600_000_000_000_000, claim.still_mine(), claim.expires_in))
        return x

    own = idempotent(key="x", ttl=DAY, when_store_down="run")
    task = app.task(shared=False, name="t", patterns=(own,))(work)
    store.answers["claim"] = away
    assert [run_here(task, 1).value for _ in range(2)] == [1, 1]
    assert seen == [(32, True, False, timedelta(0))] * 2
    assert caplog.text.count("run_without_claim") == 2
    assert [step for step, _ in store.asked] == ["claim", "claim"]
    store.answers.clear()
    assert [run_here(task, 1).value for _ in range(2)] == [1, 1]
    assert len(seen) == 3, "once more, and then it is done"
    with pytest.raises(ConfigurationError, match='expected when_store_down to be "wait" or "run", got \'stop\''):
        idempotent(key="x", ttl=DAY, when_store_down="stop")  # type: ignore[arg-type]


def test_an_unclaimed_run_that_gives_up_waits_for_the_store(app: Celery, store: Watched) -> None:
    """It is no failure here either."""

    def work(x: int) -> int:
        if not patterns.current_claim().still_mine():
            raise ClaimLost("gives up")
        return x

    own = (
        idempotent(key="x", ttl=DAY, when_store_down="run"),
        retry(on=Exception),
        dead_letter("dead", max_crashes=None),
    )
    task = app.task(shared=False, name="t", patterns=own)(work)
    store.answers["claim"] = away
    assert run_here(task, 1, task_id="t-1").state == "IGNORED"
    (copy,) = published(app)
    assert list(dead_letters(app, "dead")) == []
    store.answers.clear()
    assert run_here(task, 1, task_id="t-1", headers={HEADER: copy["headers"][HEADER]}).value == 1


def test_what_an_unclaimed_run_raises_is_its_own(app: Celery, store: Watched) -> None:
    """The store's trouble is no part of the error, nor of the letter."""

    def work(x: int) -> None:
        assert sys.exc_info() == (None, None, None)
        raise ValueError("its own")

    own = (idempotent(key="x", ttl=DAY, when_store_down="run"), dead_letter("dead", max_crashes=None))
    task = app.task(shared=False, name="t", patterns=own)(work)
    store.answers["claim"] = away
    outcome = run_here(task, 1)
    assert (str(outcome.value), outcome.value.__context__) == ("its own", None)
    (letter,) = dead_letters(app, "dead")
    assert "unplugged" not in letter.traceback


def test_a_question_that_was_heard_leaves_no_owner_behind(app: Celery, store: Watched) -> None:
    """Three unclaimed runs, whose claims were made and whose answers were lost: none of them counts as a crash."""

    def work(x: int) -> int:
        return x

    task = app.task(shared=False, name="t", patterns=(idempotent(key="x", ttl=DAY, when_store_down="run"),))(work)
    real = store.claim

    def deaf(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        away()

    store.claim = deaf  # type: ignore[method-assign]
    for _ in range(3):
        assert run_here(task, 1).value == 1
        end_leases(store)
    store.claim = real  # type: ignore[method-assign]
    assert run_here(task, 1).value == 1


def test_a_body_that_always_gives_up_waits_longer_each_time(app: Celery, store: Watched) -> None:
    """As a duplicate does: a run a second would be a hot loop."""

    def work(x: int) -> None:
        raise ClaimLost("gives up")

    task = keyed(app, work, lease=60)
    for looks, least in ((0, 1), (3, 8), (9, 30)):
        run_here(task, 1, headers={HEADER: {"looks": looks}})
        copy = published(app)[-1]
        wait = datetime.fromisoformat(copy["headers"]["eta"]).timestamp() - time.time()
        assert least - 1.5 < wait <= 31
        end_leases(store)


def test_a_run_that_did_not_wait_has_waited_for_nothing(app: Celery, store: Watched) -> None:
    """A body of two hours that then lost its key: its wait begins now."""

    def work(x: int) -> None:
        patterns.current_call().started -= 7200
        raise ClaimLost("gives up")

    run_here(keyed(app, work, lease=60), 1)
    assert published(app)[0]["headers"][HEADER]["waiting"] == pytest.approx(time.time(), abs=5)


def test_a_retry_without_a_claim(app: Celery, store: Watched) -> None:
    """Its next attempt is sent as ever, and claims the key if it can."""

    def work(x: int) -> int:
        raise ConnectionError

    own = (idempotent(key="x", ttl=DAY, when_store_down="run"), retry(on=ConnectionError))
    task = app.task(shared=False, name="t", patterns=own)(work)
    store.answers["claim"] = away
    assert run_here(task, 1).state == "RETRY"
    (attempt,) = published(app)
    assert (attempt["headers"]["retries"], len(attempt["headers"][HEADER]["asked_by"][0])) == (1, 36 + 1 + 8)


# On real workers


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_greenlet_that_was_ended_leaves_no_lease_behind(shop: Floor) -> None:
    """A hard time limit ends a greenlet anywhere, and no pattern of it runs any more: the key is free with its lease."""
    shop.worker(pool="gevent", concurrency=4)
    sent = shop.task("long_keyed").apply_async(("o-1", 60.0), time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        sent.get(timeout=20)
    assert shop.task("long_keyed").delay("o-1", 0.1).get(timeout=30).startswith("done o-1 by")
    assert "claim_lost" not in shop.logs()


@pytest.mark.parametrize(
    ("pool", "broker"),
    [("prefork", "redis"), ("prefork", "rabbitmq"), ("threads", "rabbitmq"), ("solo", "rabbitmq"), ("gevent", "redis")],
    indirect=["broker"],
)
def test_a_long_body_in_every_pool(shop: Floor, pool: str) -> None:
    """Three times its lease, and sent four times: it runs once, and all have its result."""
    shop.worker(pool=pool, concurrency=1 if pool == "solo" else 4)
    results = [shop.task("long_keyed").delay("o-1", 6.0) for _ in range(4)]
    assert len({result.get(timeout=60) for result in results}) == 1
    assert len(shop.traces.all("starts")) == 1
    assert shop.traces.all("effects") == ["o-1"]
    assert [still for _, _, still in shop.traces.all("still")] == [True]
    assert "claim_lost" not in shop.logs()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def begun(shop: Floor, seconds: float) -> tuple[Any, int, int]:
    """A long body that runs: its result to come, its process, and its fence."""
    sent = shop.task("long_keyed").delay("o-1", seconds)
    shop.wait(lambda: shop.traces.count("starts") == 1, 20, "the run")
    (_, pid, fence) = shop.traces.all("starts")[0]
    return sent, pid, fence


def test_a_worker_that_stands_still_is_replaced_and_told(shop: Floor) -> None:
    """SIGSTOP for longer than the lease: another run does the work, and the first one's result does not count."""
    shop.worker(concurrency=2)
    first, pid, fence = begun(shop, 3.0)
    with stopped(pid):
        second = shop.task("long_keyed").delay("o-1", 3.0)
        shop.wait(lambda: shop.traces.count("starts") == 2, 30, "the second run")
    (_, _, greater) = shop.traces.all("starts")[1]
    assert greater > fence
    expected = f"done o-1 by {greater}"
    assert [first.get(timeout=60), second.get(timeout=60)] == [expected, expected]
    assert sorted(map(tuple, shop.traces.all("still"))) == [("o-1", fence, False), ("o-1", greater, True)]
    assert shop.logs().count("claim_lost") == 1


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_worker_that_stood_still_and_was_not_replaced(shop: Floor) -> None:
    """Its lease ran out, but nobody asked: it goes on, and its result counts."""
    shop.worker(concurrency=1)
    sent, pid, fence = begun(shop, 3.0)
    with stopped(pid):
        time.sleep(2.5)
    assert sent.get(timeout=30) == f"done o-1 by {fence}"
    assert "claim_lost" not in shop.logs()


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_killed_holder_is_replaced_when_its_lease_is_over(shop: Floor) -> None:
    """Also one that had renewed it: nobody renews for the dead."""
    shop.worker(concurrency=2, FLOOR_VISIBILITY="7")
    sent, pid, _ = begun(shop, 5.0)
    time.sleep(3.0)  # renewed three times by now
    os.kill(pid, signal.SIGKILL)
    # Celery may take 5 s to notice, and a message that waited for the lease looks again after 1 to 4 s.
    shop.wait(lambda: shop.traces.count("starts") == 2, 25, "the second run")
    assert sent.get(timeout=60) == f"done o-1 by {shop.traces.all('starts')[1][2]}"
    assert shop.traces.all("effects") == ["o-1"]
