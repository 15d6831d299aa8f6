"""The app that the tests run on real workers: every task leaves traces in a Redis of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from datetime import datetime, timedelta
from typing import Any

import redis
from billiard import current_process
from celery import Celery
from celery.app.amqp import AMQP
from celery.beat import BeatLazyFunc
from celery.exceptions import Ignore, Reject
from celery.schedules import crontab
from kombu import Exchange, Producer, Queue
from kombu.exceptions import EncodeError
from tenacity import wait_fixed, wait_none

import celery_patterns as patterns
from celery_patterns.exceptions import ClaimLost
from celery_patterns.typing import Done

from . import bank

#: How long a key of ``witnessed`` is held by the dead, in seconds.
WITNESSED_LEASE = 3

_STEP = """
local seen = redis.call('HGET', KEYS[1], ARGV[1])
if seen and tonumber(seen) > tonumber(ARGV[2]) then redis.call('RPUSH', KEYS[2], ARGV[1])
else redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
"""


class Traces:
    """What the tasks did, where a test can see it."""

    def __init__(self, url: str, namespace: str) -> None:
        self.redis = redis.Redis.from_url(url)
        self.namespace = namespace

    def _name(self, name: str) -> str:
        return f"{self.namespace}:{name}"

    def add(self, name: str, value: object = 1) -> int:
        return int(self.redis.rpush(self._name(name), json.dumps(value, default=str)))

    def all(self, name: str) -> list[Any]:
        return [json.loads(value) for value in self.redis.lrange(self._name(name), 0, -1)]

    def count(self, name: str) -> int:
        return int(self.redis.llen(self._name(name)))

    def step(self, order: int, fence: int) -> None:
        """A step of this run: one behind a step of a later run is remembered as stale."""
        self.redis.eval(_STEP, 2, self._name("fences"), self._name("stale"), order, fence)

    def set(self, name: str) -> None:
        self.redis.set(self._name(f"flag:{name}"), 1)

    def unset(self, name: str) -> None:
        self.redis.delete(self._name(f"flag:{name}"))

    def is_set(self, name: str) -> bool:
        return bool(self.redis.exists(self._name(f"flag:{name}")))

    def wait_for(self, name: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_set(name):
            if time.monotonic() > deadline:
                raise AssertionError(f"flag {name} was not set within {seconds} s")
            time.sleep(0.01)


class Crashing:
    """A store whose worker dies once, at one point: ``claim.after``, ``release.before``, and so on."""

    point: str
    whole: bool
    traces: Traces

    def _crash(self, point: str) -> None:
        if point != self.point or not self.traces.redis.set(self.traces._name("crashed"), 1, nx=True):
            return
        if self.whole:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def claim(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().claim(*args, **kwargs)
        self._crash("claim.after")
        return answer

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        self._crash("complete.before")
        answer = super().complete(*args, **kwargs)
        if isinstance(answer, Done) and answer.ours and patterns.current_call().task == "witnessed":
            self.traces.set(f"recorded:{patterns.current_call().args[0]}")
        self._crash("complete.after")
        return answer

    def release(self, *args: Any, **kwargs: Any) -> Any:
        self._crash("release.before")
        answer = super().release(*args, **kwargs)
        self._crash("release.after")
        return answer


class CrashingStore(Crashing, patterns.stores.RedisStore):
    """One in Redis."""


def store_of(environment: Any, traces: Traces, namespace: str) -> Any:
    url, soon = environment["FLOOR_STORE"], timedelta(seconds=0.3)
    if url.startswith("redis"):
        store: Any = CrashingStore(url, prefix=f"cp-{namespace}", patience=soon)
    else:
        store = type("CrashingSQLStore", (Crashing, patterns.stores.SQLStore), {})(url, patience=soon)
    store.point, store.whole = environment.get("FLOOR_CRASH", ""), bool(environment.get("FLOOR_WHOLE"))
    store.traces = traces
    return store


class CrashingProducer(Producer):
    """Dies, or freezes, with its whole worker at a letter: ``letter.before`` or ``letter.after`` its confirmation."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        self._crash("letter.before", kwargs)
        answer = super().publish(*args, **kwargs)
        self._crash("letter.after", kwargs)
        return answer

    def _crash(self, point: str, said: Any) -> None:
        if point != os.environ.get("FLOOR_CRASH") or not str(said.get("routing_key")).endswith(".dead"):
            return
        traces = Traces(os.environ["FLOOR_TRACES"], os.environ["FLOOR_NAMESPACE"])
        if not traces.redis.set(traces._name("crashed"), 1, nx=True):
            return
        if current_process().name != "MainProcess":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGSTOP if os.environ.get("FLOOR_FREEZES") else signal.SIGKILL)


class CrashingAMQP(AMQP):
    """What an app's producers are made by."""

    Producer = CrashingProducer


class Fancy(Exception):
    """Does not survive pickle: two required arguments."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class Hooked(patterns.PatternTask):
    """Fails before its body, where no pattern stands."""

    abstract = True

    def before_start(self, _: str, args: Any, *__: Any) -> None:
        raise MemoryError if args == ["memory"] else ValueError("a hook of the task's own")


class HookedAfter(patterns.PatternTask):
    """Its hooks fail once it is decided what becomes of the attempt."""

    abstract = True
    again = RuntimeError("a hook of the task's own")  # one object, as a module's constant is

    def before_start(self, _: str, args: Any, *__: Any) -> None:
        if args == ["raised again"]:
            raise self.again

    def on_retry(self, _: Exception, __: str, args: Any, *___: Any) -> None:
        text = "a hook of the task's own"
        raised = {
            "retry, encoding": EncodeError(text),
            "retry, badly": Fancy(1, text),
            "retry, bare": json.JSONDecodeError(text, "", 0),  # arrives without what was put on it
        }
        raise raised.get(args[0], self.again)

    def on_failure(self, error: Exception, _: str, args: Any, *__: Any) -> None:
        if isinstance(error, ValueError):
            text = "a hook of the task's own"
            raise Fancy(1, text) if args == ["exception, badly"] else RuntimeError(text)


class HookedStatically(patterns.PatternTask):
    """Its hook is no plain function."""

    abstract = True

    @staticmethod
    def on_retry(*_: Any) -> None:
        raise RuntimeError("a hook of the task's own")


class Unprintable:
    """No result backend can encode it."""


def make_app(environment: Any = os.environ) -> Celery:
    namespace = environment["FLOOR_NAMESPACE"]
    broker = environment["FLOOR_BROKER"]
    traces = Traces(environment["FLOOR_TRACES"], namespace)
    app = Celery(
        f"floor-{namespace}",
        broker=broker,
        backend=environment["FLOOR_BACKEND"],
        set_as_current=False,
        amqp=CrashingAMQP,
    )
    patterns.use_patterns(app)
    if environment.get("FLOOR_STORE"):
        patterns.use_store(app, store_of(environment, traces, namespace))
    patterns.use_strict_json(app)
    if environment.get("FLOOR_STRUCTLOG"):
        patterns.use_structlog(app)
    app.conf.update(
        task_default_queue=f"q-{namespace}",
        worker_prefetch_multiplier=int(environment.get("FLOOR_PREFETCH", "1")),
        worker_eta_task_limit=int(environment["FLOOR_ETA_LIMIT"]) if "FLOOR_ETA_LIMIT" in environment else None,
        broker_connection_retry_on_startup=True,
        result_expires=600,
        worker_hijack_root_logger=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    if not broker.startswith("redis"):
        # Sent is sent, also when the broker is killed.
        app.conf.broker_transport_options = {"confirm_publish": True}
    if environment.get("FLOOR_HASTY"):
        hasty = {"timeout": 0.5, "max_retries": 2, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
        app.conf.result_backend_transport_options = {"retry_policy": hasty}
    if environment.get("FLOOR_QUEUE_TYPE"):
        app.conf.task_default_queue_type = environment["FLOOR_QUEUE_TYPE"]
        app.conf.task_default_exchange_type = "topic"
        app.conf.worker_detect_quorum_queues = True
        app.conf.task_queues = [
            Queue(name, Exchange(name, type="topic"), routing_key=name, queue_arguments={"x-queue-type": "quorum"})
            for name in (f"q-{namespace}", f"q-{namespace}-second")
        ]
    if environment.get("FLOOR_BURIES"):
        # A queue of the user's that buries what is rejected, where our letters go, too.
        buries = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"q-{namespace}.dead"}
        queue = Queue(f"q-{namespace}", Exchange(f"q-{namespace}"), f"q-{namespace}", queue_arguments=buries)
        app.conf.task_queues = [queue]
    if broker.startswith("redis"):
        app.conf.broker_transport_options = {
            "visibility_timeout": float(environment.get("FLOOR_VISIBILITY", "3600")),
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # A worker that is killed while it looks for the messages of others leaves its lock behind for so long.
            "unacked_mutex_expire": 5,
        }
        if environment.get("FLOOR_POLLING"):
            app.conf.broker_transport_options["polling_interval"] = float(environment["FLOOR_POLLING"])
    app.traces = traces
    if environment.get("FLOOR_BANK"):
        bank.add_tasks(app, environment["FLOOR_BANK"])
    dead = f"q-{namespace}.dead"

    keyed = patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(seconds=3), same=("order",))
    now = wait_none()
    task = app.task

    @task(shared=False, name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @task(shared=False, name="bill")
    @patterns.idempotent(key="slot", ttl=timedelta(hours=1))
    def bill(slot: datetime) -> str:
        traces.add("billed", slot)
        return str(slot)

    if environment.get("FLOOR_BEAT"):
        every: Any = crontab() if environment["FLOOR_BEAT"] == "minute" else float(environment["FLOOR_BEAT"])
        slot = BeatLazyFunc(patterns.latest_slot, every)
        app.conf.beat_schedule = {"bill": {"task": "bill", "schedule": every, "kwargs": {"slot": slot}}}

    @task(shared=False, name="collect")
    def collect(values: list[Any]) -> list[Any]:
        traces.add("collected", values)
        return values

    @task(shared=False, name="note")
    def note(value: Any, name: str = "noted") -> Any:
        traces.add(name, value)
        return value

    @task(shared=False, name="as_tuple")
    @patterns.dead_letter(dead)
    def as_tuple(_: Any) -> Any:
        return {"pair": (1, 2)}

    def as_nan(_: Any) -> Any:
        return float("nan")

    task(as_nan, shared=False, name="as_nan", patterns=(patterns.dead_letter(dead),))
    task(as_nan, shared=False, name="as_nan_plain")

    @task(shared=False, name="failed_errback")
    def failed_errback(task_id: str) -> None:
        traces.add("errback", task_id)

    @task(shared=False, name="flaky")
    @patterns.retry(on=ConnectionError, attempts=3, wait=now)
    def flaky(order: str, failures: int = 2) -> str:
        traces.add("flaky", order)
        call = patterns.current_call()
        traces.add("attempts", [call.attempt, call.attempts, call.is_last])
        if call.attempt <= failures:
            raise ConnectionError(f"attempt {call.attempt}")
        return f"done {order}"

    @task(shared=False, name="flaky_keyed")
    @patterns.retry(on=ConnectionError, attempts=3, wait=now)
    # Longer than the 5 s that Celery may take to notice a dead child, so that the next attempt finds the claim alive.
    @patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(seconds=12), same=("order",))
    @patterns.dead_letter(dead)
    def flaky_keyed(order: str, failures: int = 2) -> str:
        call = patterns.current_call()
        traces.add("runs", [order, call.id, call.attempt])
        if call.attempt <= failures:
            raise ConnectionError(f"attempt {call.attempt}")
        traces.add("effects", order)
        return f"done {order}"

    @task(shared=False, name="slow_keyed")
    @keyed
    @patterns.dead_letter(dead)
    def slow_keyed(order: str, seconds: float = 0.0, flag: str | None = None, result: Any = None) -> Any:
        claim = patterns.current_claim()
        traces.add("starts", [order, os.getpid(), claim.fence])
        if flag is not None:
            traces.wait_for(flag)
        time.sleep(seconds)
        traces.add("effects", order)
        return result if result is not None else f"done {order}"

    @task(shared=False, name="long_keyed")
    @patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(seconds=2), same=("order",))
    @patterns.dead_letter(dead)
    def long_keyed(order: str, seconds: float) -> str:
        claim = patterns.current_claim()
        traces.add("starts", [order, os.getpid(), claim.fence])
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.05)
        traces.add("still", [order, claim.fence, claim.still_mine()])
        traces.add("effects", order)
        return f"done {order} by {claim.fence}"

    @task(shared=False, name="claim_then_wait")
    @patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(seconds=30))
    def claim_then_wait(order: str) -> str:
        run = str(patterns.current_claim().fence)
        traces.add("begun", run)
        traces.wait_for("go", 60)
        return run

    @task(shared=False, name="witnessed")
    @patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(seconds=WITNESSED_LEASE), same=("order",))
    @patterns.dead_letter(dead, max_crashes=None)
    def witnessed(order: int, seconds: float) -> str:
        """Each step asks whether the key is still its own, and is told to a witness that is not cut off."""
        claim = patterns.current_claim()
        run = f"{order}/{claim.fence}"
        traces.add("begun", [order, claim.fence, os.getpid(), traces.is_set(f"recorded:{order}")])
        until = time.monotonic() + seconds
        while True:
            if not claim.still_mine():
                traces.add("gave up", run)
                raise ClaimLost("another run has the key")
            traces.step(order, claim.fence)
            if time.monotonic() >= until:
                break
            time.sleep(0.05)
        traces.add("effects", order)
        return run

    @task(shared=False, name="doomed")
    @patterns.dead_letter(dead)
    def doomed(order: str, kind: str = "value") -> None:
        traces.add("doomed", order)
        if kind == "fancy":
            raise Fancy(7, order)
        if kind == "memory":
            raise MemoryError("no more")
        if kind == "mended" and traces.is_set("mended"):
            traces.add("mended", [order, patterns.current_call().id])
            return
        raise ValueError(f"cannot do {order}")

    @task(shared=False, name="doomed_keyed")
    @keyed
    @patterns.dead_letter(dead)
    def doomed_keyed(order: str) -> str:
        traces.add("doomed", order)
        if traces.is_set("mended"):
            traces.add("effects", order)
            return f"mended {order}"
        raise ValueError(f"cannot do {order}")

    def order(number: int, fails: bool = False) -> None:
        time.sleep(0.01)
        if fails and not traces.is_set("mended"):
            raise ValueError(f"no {number}")
        traces.add("orders", number)

    task(order, shared=False, name="order", patterns=(patterns.dead_letter(dead),))
    once = patterns.idempotent(key="number", ttl=timedelta(hours=1), lease=timedelta(seconds=3))
    task(order, shared=False, name="order_keyed", patterns=(patterns.dead_letter(dead), once))

    @task(shared=False, name="flaky_held")
    @patterns.retry(on=ConnectionError, attempts=3, wait=now)
    @patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(seconds=60))
    @patterns.dead_letter(dead)
    def flaky_held(order: str) -> str:
        call = patterns.current_call()
        traces.add("runs", [order, call.attempt])
        if call.attempt == 1:
            traces.wait_for("go")
            raise ConnectionError("the first attempt fails")
        traces.add("effects", order)
        return f"done {order}"

    @task(shared=False, name="doomed_held")
    @keyed
    @patterns.dead_letter(dead)
    def doomed_held(order: str) -> None:
        traces.add("runs", order)
        traces.wait_for("go")
        raise ValueError(f"cannot do {order}")

    @task(shared=False, name="killer")
    @patterns.dead_letter(dead)
    def killer(order: str) -> None:
        traces.add("kills", order)
        os.kill(os.getpid(), signal.SIGKILL)

    @task(shared=False, name="killer_whole")
    @patterns.dead_letter(dead)
    def killer_whole(order: str) -> None:
        traces.add("kills", order)
        time.sleep(0.3)  # so that those that run beside it are others each time
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    @task(shared=False, name="killer_whole_keyed")
    @patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(seconds=2))
    @patterns.dead_letter(dead)
    def killer_whole_keyed(order: str) -> None:
        traces.add("kills", order)
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    @task(shared=False, name="nap")
    @patterns.dead_letter(dead)
    def nap(number: int) -> None:
        time.sleep(0.2)
        traces.add("naps", number)

    @task(shared=False, name="held")
    def held() -> None:
        traces.add("held")
        traces.wait_for("go", 60)

    @task(shared=False, name="killer_keyed")
    @patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(seconds=2))
    @patterns.dead_letter(dead)
    def killer_keyed(order: str, kills: int = 99) -> str:
        if traces.add("kills", order) <= kills:
            os.kill(os.getpid(), signal.SIGKILL)
        traces.add("effects", order)
        return f"survived {order}"

    @task(shared=False, name="unencodable")
    @keyed
    @patterns.dead_letter(dead)
    def unencodable(order: str) -> Any:
        traces.add("effects", order)
        return Unprintable()

    @task(shared=False, name="by_hand", bind=True)
    @patterns.retry(on=ConnectionError, attempts=3, wait=wait_fixed(1))
    @patterns.dead_letter(dead)
    def by_hand(self: Any, basket: list[str]) -> list[str]:
        traces.add("by_hand", basket)
        seen = list(basket)
        basket.append("spoiled")
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return seen

    @task(shared=False, name="replaced", bind=True)
    @patterns.idempotent(key="order", ttl=timedelta(hours=1))
    @patterns.dead_letter(dead)
    def replaced(self: Any, order: str, page: int = 0) -> Any:
        traces.add("pages", page)
        if page < 2:
            raise self.replace(self.app.tasks["replaced"].s(order, page + 1))
        return f"page {page}"

    @task(shared=False, name="leaves")
    @keyed
    @patterns.dead_letter(dead)
    def leaves(order: str, how: str) -> None:
        traces.add("leaves", how)
        if how == "ignore":
            raise Ignore
        if how == "reject":
            raise Reject("not this one", requeue=False)
        if how == "requeue" and traces.count("leaves") < 3:
            raise Reject("again", requeue=True)

    ends_dead = patterns.dead_letter(dead, max_crashes=2, also={"revoked", "expired"})

    badly = Ignore(Fancy(1, "does not unpickle"))
    raised = {"ignore": Ignore, "ignore badly": badly, "aborted": asyncio.CancelledError, "memory": MemoryError}

    def ends(how: str) -> Any:
        starts = traces.add("ends", how)
        if how == "requeue" and starts == 1:
            raise Reject("again", requeue=True)
        if how in raised:
            raise raised[how]
        if how.startswith("retry") and starts == 1:
            raise ConnectionError("once")
        if how == "kill once" and starts == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if how.startswith("exception"):
            raise ValueError("for good")
        if how.startswith("reject"):
            raise Reject(Fancy(1, "does not unpickle") if how == "reject badly" else "not this one", requeue=False)
        if how == "exit":
            sys.exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "unencodable":
            return Unprintable()
        if how in ("soft", "hard", "terminated"):
            time.sleep(30)
        if how == "held":
            traces.wait_for("go", 160)
        return how

    @task(shared=False, name="swallow", patterns=(ends_dead,))
    def swallow(*args: Any, **kwargs: Any) -> None:
        traces.add("swallowed", patterns.current_call().id)

    task(ends, shared=False, name="ends", patterns=(ends_dead,))
    task(ends, shared=False, name="ends_early", patterns=(ends_dead,), acks_late=False)
    task(ends, shared=False, name="ends_lost", patterns=(ends_dead,), reject_on_worker_lost=False)
    task(ends, shared=False, name="ends_plain")
    task(ends, shared=False, name="ends_quiet", patterns=(patterns.dead_letter(dead),))
    task(ends, shared=False, name="ends_unacked", patterns=(ends_dead,), acks_on_failure_or_timeout=False)
    again = patterns.retry(on=ConnectionError, attempts=2, wait=now)
    task(ends, shared=False, name="ends_retried", patterns=(ends_dead, again))
    task(ends, shared=False, name="ends_hooked", patterns=(ends_dead,), base=Hooked)
    task(ends, shared=False, name="ends_hooked_after", patterns=(ends_dead, again), base=HookedAfter)
    task(ends, shared=False, name="ends_hooked_statically", patterns=(ends_dead, again), base=HookedStatically)
    # Celery 5.7's own way to treat a lost child as one more attempt.
    lost = {"retry_on_worker_lost": True, "default_retry_delay": 0}
    task(ends, shared=False, name="ends_lost_retried", patterns=(ends_dead,), max_retries=1, **lost)
    task(
        ends,
        shared=False,
        name="ends_lost_retried_early",
        patterns=(ends_dead,),
        max_retries=1,
        acks_late=False,
        **lost,
    )

    def keyed_ends(order: str, how: str) -> str:
        return str(ends(how))

    def key_of(order: str, how: str) -> str:
        traces.add("asked for a key", os.getpid())
        return order

    by_name = patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(minutes=10))
    by_function = patterns.idempotent(key=key_of, ttl=timedelta(hours=1), lease=timedelta(minutes=10))
    shortly = patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(seconds=3))
    task(keyed_ends, shared=False, name="ends_keyed", patterns=(ends_dead, by_name))
    task(keyed_ends, shared=False, name="ends_keyed_shortly", patterns=(ends_dead, shortly))
    task(
        keyed_ends, shared=False, name="ends_keyed_quiet", patterns=(patterns.dead_letter(dead, max_crashes=2), by_name)
    )
    task(keyed_ends, shared=False, name="ends_keyed_early", patterns=(ends_dead, by_name), acks_late=False)
    task(keyed_ends, shared=False, name="ends_keyed_by", patterns=(ends_dead, by_function))

    def scope_of(order: Any, how: str) -> Any:
        traces.add("asked for a scope", os.getpid())
        return order["tenant"]

    for name, scope in (("ends_scoped", "order.tenant"), ("ends_scoped_by", scope_of)):
        scoped = patterns.idempotent(
            key="order.id", scope=scope, ttl=timedelta(hours=1), lease=timedelta(minutes=10), same=("order",)
        )
        task(keyed_ends, shared=False, name=name, patterns=(ends_dead, scoped))

    def placed(order: dict[str, Any], flag: str | None = None) -> str:
        traces.add("placed", [order["tenant"], order["id"]])
        if flag is not None:
            traces.wait_for(flag, 60)
        return f"{order['tenant']} {order['id']}"

    # It fails at once where another call's work runs; a lease that outlives a test, and one that a kill is to end.
    for name, lease in (("placed", 600), ("placed_shortly", 3)):
        options = {"key": "order.id", "scope": "order.tenant", "same": ("order",), "when_running": "raise"}
        placing = patterns.idempotent(ttl=timedelta(hours=1), lease=timedelta(seconds=lease), **options)
        task(placed, shared=False, name=name, patterns=(patterns.dead_letter(dead), placing))

    @task(shared=False, name="declined")
    @patterns.idempotent(key="order", ttl=timedelta(hours=1), lease=timedelta(seconds=3), remember=PermissionError)
    @patterns.dead_letter(dead)
    def declined(order: str) -> str:
        traces.add("declined", order)
        if traces.is_set("mended"):
            return f"mended {order}"
        raise PermissionError(f"{order} was declined")

    @task(shared=False, name="fanned")
    @patterns.retry(on=ConnectionError, attempts=2, wait=now)
    def fanned(x: int) -> int:
        return x * 2

    @task(shared=False, name="member")
    @patterns.retry(on=ConnectionError, attempts=3, wait=now)
    @patterns.idempotent(key="x", ttl=timedelta(hours=1), same=("x",))
    @patterns.dead_letter(dead)
    def member(x: int, how: str = "plain") -> int:
        traces.add("members", [x, how])
        if how == "retried" and patterns.current_call().attempt == 1:
            raise ConnectionError("once")
        if how == "dead":
            raise ValueError("for good")
        return x * 10

    @task(shared=False, name="doomed_slowly")
    @patterns.retry(on=ConnectionError, attempts=2, wait=wait_fixed(1))
    @patterns.dead_letter()
    def doomed_slowly(order: str) -> None:
        raise ConnectionError(f"attempt {patterns.current_call().attempt} of {order}")

    @task(shared=False, name="reliable", base=patterns.ReliableTask)
    def reliable(order: str) -> str:
        traces.add("reliable", order)
        raise ConnectionError("never there")

    return app
