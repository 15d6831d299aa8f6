"""Wrong uses on a real worker: each a clear error or a dead letter, the worker alive, nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest

from .harness import ROOT, Floor, floor
from .servers import RedisServer


def _still_works(shop: Floor, pid: int) -> None:
    assert shop.workers[0].alive()
    assert shop.workers[0].pid == pid
    assert shop.task("add").delay(1, 2).get(timeout=20) == 3


def test_an_exception_that_does_not_unpickle(shop: Floor) -> None:
    """It is a letter with its text, its caller sees a failure, and the worker goes on."""
    pid = shop.worker().pid
    result = shop.task("doomed").delay("o-1", kind="fancy")
    shop.wait(lambda: len(shop.letters()) == 1, what="the letter")
    assert shop.letters()[0].message == "7: o-1"
    with pytest.raises(Exception, match="7: o-1"):
        result.get(timeout=20)
    _still_works(shop, pid)


def test_a_memory_error_spares_the_worker(shop: Floor) -> None:
    """Celery would end the worker, and after redelivery the next; here it is a failure with a letter."""
    pid = shop.worker(concurrency=1).pid
    children = shop.workers[0].children()
    result = shop.task("doomed").delay("o-1", kind="memory")
    with pytest.raises(Exception, match="ran out of memory"):
        result.get(timeout=20)
    assert [letter.error for letter in shop.letters()] == ["builtins.MemoryError"]
    _still_works(shop, pid)
    assert shop.workers[0].children() == children


def test_a_result_that_cannot_be_encoded(shop: Floor) -> None:
    """The work is done once; its caller sees Celery's own encoding failure, and a duplicate does not run."""
    pid = shop.worker().pid
    for _ in range(2):
        with pytest.raises(Exception, match=r"JSON serializable|could not be stored"):
            shop.task("unencodable").delay("o-1").get(timeout=20)
    assert shop.traces.all("effects") == ["o-1"]
    _still_works(shop, pid)


def test_the_same_key_with_other_arguments(shop: Floor) -> None:
    """``member`` agrees on x only; ``charge``-like tasks that agree on all refuse, with a letter."""
    pid = shop.worker().pid
    replaced = shop.task("replaced")
    assert replaced.delay("o-1", page=5).get(timeout=20) == "page 5"
    with pytest.raises(Exception, match="used before with other arguments"):
        replaced.delay("o-1", page=6).get(timeout=20)
    assert [letter.error.rpartition(".")[2] for letter in shop.letters()] == ["KeyMismatch"]
    _still_works(shop, pid)


def test_a_message_with_wrong_arguments(shop: Floor) -> None:
    """Sent by name, past Celery's check: the body's own TypeError, in a letter, with a key and without."""
    pid = shop.worker().pid
    for name in ("doomed", "slow_keyed", "flaky_keyed"):
        shop.app.send_task(name, kwargs={"wrong": 1})
    shop.wait(lambda: len(shop.letters()) == 3, what="the letters")
    assert {letter.error for letter in shop.letters()} == {"builtins.TypeError"}
    _still_works(shop, pid)


def test_an_unsafe_argument_never_leaves(shop: Floor) -> None:
    """NaN, int keys, a set and a model raise at ``.delay()``, and the queue stays empty."""
    from celery_patterns.exceptions import UnsafeValue

    class Model:
        _meta = object()

    shop.worker()
    for bad in (float("nan"), {1: 2}, {1}, Model(), {"a": [{"b": float("nan")}]}):
        with pytest.raises(UnsafeValue):
            shop.task("note").delay(bad)
    assert shop.task("note").delay("last").get(timeout=20) == "last"
    assert shop.traces.all("noted") == ["last"]


@pytest.fixture
def own_store(broker: str, database: str, tmp_path: Any) -> Any:
    """A shop whose store is a server of its own, that a test may kill."""
    server = RedisServer()
    server.start()
    environment = {
        "FLOOR_BROKER": broker,
        "FLOOR_BACKEND": database,
        "FLOOR_STORE": server.url(),
        "FLOOR_TRACES": database,
    }
    with floor(environment, tmp_path) as shop:
        yield shop, server
    server.close()


def test_the_store_down_at_the_claim(own_store: Any) -> None:
    """The message waits, uses no attempt, and is done once the store is back."""
    shop, server = own_store
    pid = shop.worker().pid
    server.stop()
    result = shop.task("flaky_keyed").delay("o-1", failures=0)
    shop.wait(lambda: "claim_postponed" in shop.workers[0].text(), 30, "the postponed claim")
    assert shop.traces.count("runs") == 0
    server.start()
    assert result.get(timeout=60) == "done o-1"
    assert [attempt for _, _, attempt in shop.traces.all("runs")] == [1]
    _still_works(shop, pid)


def test_the_store_down_at_the_completion(own_store: Any) -> None:
    """The store dies under the body: the task succeeds, with the loudest event, within the lease."""
    shop, server = own_store
    pid = shop.worker().pid
    result = shop.task("slow_keyed").delay("o-1", flag="go")
    shop.wait(lambda: shop.traces.count("starts") == 1, what="the start")
    server.stop()
    shop.traces.set("go")
    assert result.get(timeout=30) == "done o-1"
    assert "claim_not_recorded" in shop.workers[0].text()
    _still_works(shop, pid)


def _refused_worker(environment: dict[str, str], code: str, tmp_path: Any, *more: str) -> str:
    """What a worker of this app says when it refuses to start."""
    (tmp_path / "refused.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "refused", "worker", "-P", "solo", "-Q", "refused", *more],
        cwd=tmp_path,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "p.use_patterns(app)\n@app.task(name='t')\n@p.idempotent(key='x', ttl=timedelta(1))\ndef t(x): ...",
            "t wears idempotent() but its app has no store",
        ),
        (
            "p.use_patterns(app)\n@app.task(name='t')\n@p.dead_letter()\ndef t(): ...",
            "t wears dead_letter() and its app has no store to count crashes in",
        ),
        ("@app.task(name='t')\n@p.logged()\ndef t(): ...", "t wears patterns but its class is not a PatternTask"),
        (
            "p.equip(app, store='redis://localhost')\n@app.task(name='t')\n@p.logged()\nasync def t(): ...",
            "t is an async def",
        ),
        (
            "p.equip(app, store='redis://localhost')\n@app.task(name='t')\n@p.idempotent(key='y', ttl=timedelta(1))\ndef t(x): ...",
            "key names 'y', but t() takes (x)",
        ),
    ],
)
def test_a_worker_that_could_not_keep_its_promise_does_not_start(
    database: str, tmp_path: Any, code: str, said: str
) -> None:
    """It ends at once, and its last words name the task and the cure."""
    head = (
        "import os\nfrom datetime import timedelta\nfrom celery import Celery\nimport celery_patterns as p\n"
        f"app = Celery('refused', broker={database!r})\n"
    )
    assert said in _refused_worker({}, head + code, tmp_path)


def test_dead_letter_without_a_store_when_it_counts_nothing(database: str, tmp_path: Any) -> None:
    """``max_crashes=None``, or early acknowledgement, needs no store: the worker starts."""
    from celery import Celery

    import celery_patterns as patterns
    from celery_patterns.worker import refusal

    app = Celery("bare", broker=database, set_as_current=False)
    patterns.use_patterns(app)

    def body() -> None: ...

    uncounted = app.task(shared=False, name="a")(patterns.dead_letter(max_crashes=None)(body))

    def other() -> None: ...

    early = app.task(shared=False, name="b", acks_late=False)(patterns.dead_letter()(other))
    assert (refusal(app, uncounted), refusal(app, early)) == (None, None)
    assert (uncounted.plan.terms.crash_limit, early.plan.terms.crash_limit) == (None, None)


@pytest.mark.parametrize("given", [("o-1", 3), (5, None), ("o-1", None), (b"o-1",)])
def test_apply_async_called_like_delay(database: str, given: Any) -> None:
    """Celery takes a text for its characters, or says something of ``charge()`` and ``**``."""
    from celery import Celery

    import celery_patterns as patterns

    app = Celery("bare", broker=database, set_as_current=False)
    patterns.equip(app, store=database)

    @app.task(shared=False, name="charge")
    @patterns.idempotent(key="order", ttl=timedelta(days=1))
    def charge(order: str, amount: int) -> None: ...

    with pytest.raises(
        TypeError, match=r"charge\.apply_async\(\) takes args as a list or a tuple and kwargs as a dict"
    ):
        charge.apply_async(*given)
    with pytest.raises(TypeError, match="missing 2 required"):
        charge.apply_async(iter(()), {})
