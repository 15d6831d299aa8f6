"""CP4: the app's settings and its servers' own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from datetime import timedelta
from typing import Any

import redis
from kombu.exceptions import OperationalError

import celery_patterns as patterns
from celery_patterns._equipment import equipment_of
from celery_patterns.exceptions import StoreUnavailable
from celery_patterns.stores import RedisStore
from celery_patterns.typing import Attempt, Claimed

from ..projects import Project
from ..servers import queue_length
from ._ailment import EQUIPPED, HEAD, WORK, Ailment, cannot_send, place_raises

BURIES = """

@app.task(time_limit=60)
@patterns.dead_letter()
def work(text: object = "a") -> object:
    mark("worked")
    return text
"""


def _on(url: str, more: str = WORK) -> str:
    return (HEAD + more).replace('broker="$broker"', f'broker="{url}"')


def _sent_and_gone(project: Project) -> bool:
    """Whether messages vanish that ``.delay()`` took: a full server must refuse them."""
    sent = 0
    try:
        for _ in range(400):
            project.send("work", "x" * 10_000, ignore_result=True, retry=False)
            sent += 1
    except (OperationalError, redis.RedisError) as full:
        assert "OOM" in str(full) or "maxmemory" in str(full)
    port = int(project.app.connection_for_write().port)
    try:
        return bool(redis.Redis(port=port).llen(project.values["queue"]) < sent)
    except redis.RedisError:
        return False


def _is_empty_after_a_restart(project: Project) -> bool:
    port = project.app.connection_for_write().port
    server = next(one for one in project.values.servers if one.port == port)  # type: ignore[attr-defined]
    project.send("work", ignore_result=True)
    server.stop(signal.SIGKILL)
    server.start()
    return bool(redis.Redis(port=server.port).llen(project.values["queue"]) == 0)


def _full_queue_takes_it(project: Project) -> bool:
    """Whether a message is gone that ``.delay()`` took: the queue has room for one."""
    try:
        for _ in range(3):
            project.send("work", ignore_result=True, retry=False)
    except Exception:
        return False
    return queue_length(project.values["rabbit"], project.values["queue"]) < 3


def _another_task_waits(project: Project) -> bool:
    """Whether a task is not run while another one waits for its next attempt."""
    worker = project.worker()
    project.send("fails", ignore_result=True)
    assert project.marked("failed", 30)
    with contextlib.suppress(AssertionError):  # where the broker holds it, it does not come yet
        project.wait(lambda: worker.text().count("] received") > 1, 5, "the next attempt waits in the worker")
    project.send("work", ignore_result=True)
    return not project.marked("worked", 5)


def _succeeds_without_running(project: Project) -> bool:
    worker = project.worker()
    project.send("work")
    project.wait(lambda: "succeeded in" in worker.text(), 20, "the worker says that it succeeded")
    return not project.marked("worked", 1)


def _runs_here(project: Project) -> bool:
    project.send("work", ignore_result=True)
    return project.marks() == [f"in {os.getpid()}"]


def _has_no_effect(project: Project) -> bool:
    return not project.task("work").ignore_result


def _comes_back_late(project: Project) -> bool:
    """Whether what a killed worker held is not back within its visibility timeout and ten seconds."""
    first = project.worker()
    project.send("work", ignore_result=True)
    assert project.marked("began")
    first.kill()
    project.worker(name="second")
    return not project.marked("began", 20, times=2)


def _is_thrown_away(project: Project) -> bool:
    worker = project.worker("-B", "-s", str(project.folder / "beat"))
    seen = project.marked("worked", 5)
    assert seen or "unregistered task" in worker.text()
    return not seen


def _ends_with_a_type_error(project: Project) -> bool:
    worker = project.worker("-B", "-s", str(project.folder / "beat"))
    seen = project.marked("worked", 5)
    assert seen or "TypeError" in worker.text()
    return not seen


def _is_kept(project: Project) -> bool:
    backend, task_id = project.app.backend, uuid.uuid4().hex
    backend.store_result(task_id, 1, "SUCCESS")
    return bool(backend.client.ttl(backend.get_key_for_task(task_id)) == -1)


def _holds_all(project: Project) -> bool:
    """Whether a worker takes all that waits."""
    project.worker()
    for _ in range(40):
        project.send("work", countdown=120, ignore_result=True)
    inspect = project.app.control.inspect(timeout=1)

    def held() -> int:
        return sum(map(len, (inspect.scheduled() or {}).values()))

    project.wait(lambda: held() >= 5, 20, "some wait in the worker")
    most = 0
    for _ in range(4):
        most = max(most, held())
    return most == 40


def _sends_events(project: Project) -> bool:
    """Whether five tasks have their worker send fifteen messages more, which anybody who listens hears."""
    for name, *arguments in project.workers or (("w",),):
        project.worker(*arguments, name=name)
    heard: list[str] = []

    def hear(event: Any, _: Any) -> None:
        heard.extend(one["type"] for one in (event if isinstance(event, list) else [event]))

    with project.app.connection_for_read() as connection:
        queue = project.app.events.Receiver(connection).queue
        with connection.Consumer(queues=[queue], callbacks=[hear], no_ack=True, accept=["json"]):
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.5)  # on Redis nothing is heard before the first of them
            for _ in range(5):
                project.send("work", ignore_result=True)
            assert project.marked("worked", times=5)
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline and heard.count("task-succeeded") < 5:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.5)
    return min(heard.count(f"task-{what}") for what in ("received", "started", "succeeded")) >= 5


def _letter_is_gone(project: Project) -> bool:
    """Whether a letter that is looked at five times, a second after it was written, is gone."""
    worker = project.worker()
    project.send("work")
    project.wait(
        lambda: "Task $name".replace("$name", project.name) in worker.text() and " raised " in worker.text(),
        20,
        "it has failed",
    )
    time.sleep(1)
    letters = patterns.dead_letters(project.app, f"{project.values['queue']}.dead")
    return min(letters.count() for _ in range(5)) == 0


def _never_sent(project: Project) -> bool:
    """Whether what beat is to send often does not come."""
    project.worker("-B", "-s", str(project.folder / "beat"), ready=False)
    return not project.marked("worked", 12)


def _is_refused(project: Project) -> bool:
    """Whether a worker throws away what was sent."""
    worker = project.worker()
    project.send("work", ignore_result=True)
    seen = project.marked("worked", 5)
    assert seen or "ContentDisallowed" in worker.text()
    return not seen


def _does_not_start(project: Project) -> bool:
    """Whether a worker refuses to start."""
    worker = project.worker(ready=False)
    project.wait(lambda: not worker.alive() or " ready." in worker.text(), 30, "it runs, or has ended")
    return not worker.alive()


def _never_runs(project: Project) -> bool:
    project.worker()
    project.send("work", ignore_result=True)
    return not project.marked("worked", 6)


def _goes_elsewhere(project: Project) -> bool:
    """Whether a message does not stand in the queue that its route names."""
    project.send("work", ignore_result=True)
    connection = project.app.connection_for_write()
    database = redis.Redis(port=int(connection.port), db=int(connection.virtual_host))
    return bool(database.llen(f"{project.values['queue']}-2") == 0)


def _chatters(project: Project) -> bool:
    """Whether ten workers that have nothing to do are sent more than ten events a second, each by the server."""
    running = [project.worker(*arguments, name=name, ready=False) for name, *arguments in project.workers]
    for one in running:
        one.wait_ready()
    server = redis.Redis(port=int(project.app.connection_for_write().port))
    before, began = server.info("stats")["total_net_output_bytes"], time.monotonic()
    time.sleep(6)  # what is counted is what goes on meanwhile
    sent = server.info("stats")["total_net_output_bytes"] - before
    heartbeat = 300  # bytes of one, at the least
    return bool(sent / (time.monotonic() - began) > 10 * heartbeat)


def _is_done_twice(project: Project) -> bool:
    """Whether a key that was recorded as done is free once the replica is the primary; it heard nothing of the last moment."""
    house = project.values.servers[0]  # type: ignore[attr-defined]
    store = equipment_of(project.app).store
    spans = {"lease": timedelta(seconds=30), "ttl": timedelta(days=1)}
    with house.cable.cut():
        try:
            claimed = store.claim("work:a", Attempt("run", 0, "owner"), "print", **spans)
            store.complete("work:a", Attempt("run", 0, "owner"), "print", claimed.fence, b"1", ttl=spans["ttl"])
        except StoreUnavailable:
            return False  # nobody was told that it is done
        house.on_replica().replicaof("NO", "ONE")
    promoted = RedisStore(f"redis://127.0.0.1:{house.replica.port}/0")
    return isinstance(promoted.claim("work:a", Attempt("run", 0, "another"), "print", **spans), Claimed)


QUORUM = """
from kombu import Exchange, Queue
from tenacity.wait import wait_fixed

tasks = Exchange("x-$queue", type="direct")
app.conf.task_queues = [Queue("$queue", tasks, routing_key="$queue", queue_arguments={"x-queue-type": "quorum"})]
app.conf.worker_prefetch_multiplier = 1


@app.task
@patterns.retry(on=ConnectionError, attempts=2, wait=wait_fixed(20))
def fails() -> None:
    mark("failed")
    raise ConnectionError
"""
SCHEDULE = 'app.conf.beat_schedule = {"often": {"task": "$name.work", "schedule": 0.5, "args": ["a"]}}\n'

DEAD = """
from kombu import Queue

app.conf.task_queues = [Queue("$queue"), Queue("$queue.dead", queue_arguments={"x-message-ttl": 500})]
"""
FAILS = """

@app.task(time_limit=60, ignore_result=True)
@patterns.dead_letter()
def work() -> None:
    mark("worked")
    raise ValueError
"""

AILMENTS = (
    Ailment(
        "CP401", _on("redis://127.0.0.1:$evicting/0"), (("$evicting", "$refusing"),), _sent_and_gone, where="broker_url"
    ),
    Ailment(
        "CP402",
        _on("redis://127.0.0.1:$forgetful/0"),
        (("$forgetful", "$durable"),),
        _is_empty_after_a_restart,
        where="broker_url",
    ),
    Ailment(
        "CP403",
        EQUIPPED
        + """
from kombu import Queue

full = {"x-max-length": 1, "x-overflow": "reject-publish"}
app.conf.task_queues = [Queue("$queue", queue_arguments=full)]
app.conf.broker_transport_options = {}
"""
        + BURIES,
        (("broker_transport_options = {}", 'broker_transport_options = {"confirm_publish": True}'),),
        _full_queue_takes_it,
        broker="rabbitmq",
    ),
    Ailment(
        "CP404",
        EQUIPPED + QUORUM + WORK,
        (('type="direct"', 'type="topic"'),),
        _another_task_waits,
        broker="rabbitmq",
        long=True,
    ),
    Ailment(
        "CP405",
        HEAD + WORK.replace("@app.task", "@app.task(ignore_result=True)").replace("def work", "async def work"),
        (("async def", "def"),),
        _succeeds_without_running,
        long=True,
    ),
    Ailment(
        "CP406",
        HEAD
        + '\nTAGS = {"a", "b"}\n\n\n@app.task\ndef work(tags: set[str]) -> None: ...\n\n\ndef place() -> None:\n    work.delay(*[TAGS])\n',
        (('{"a", "b"}', '["a", "b"]'), ("set[str]", "list[str]")),
        place_raises,
        name="json",
    ),
    Ailment(
        "CP406",
        HEAD
        + "patterns.use_patterns(app)\npatterns.use_strict_json(app)\n"
        + "\nPLACE = (1, 2)\n\n\n@app.task\ndef work(place: tuple[int, int]) -> None: ...\n\n\ndef place() -> None:\n    work.delay(PLACE)\n",
        (("(1, 2)", "[1, 2]"), ("tuple[int, int]", "list[int]")),
        place_raises,
        name="strict",
    ),
    Ailment(
        "CP407",
        HEAD + "app.conf.task_always_eager = True\n\nimport os\n" + WORK.replace('"worked"', 'f"in {os.getpid()}"'),
        (("task_always_eager = True", "task_always_eager = False"),),
        _runs_here,
        how={"profile": "production"},
    ),
    Ailment(
        "CP408",
        HEAD + "app.conf.task_ignore_results = True\n" + WORK,
        (("task_ignore_results", "task_ignore_result"),),
        _has_no_effect,
        where="task_ignore_results",
        name="setting",
    ),
    Ailment(
        "CP408",
        HEAD + 'app.conf.broker_transport_options = {"global_keypreffix": "shop:"}\n' + WORK,
        (("global_keypreffix", "global_keyprefix"),),
        lambda project: _key_of(project) == project.values["queue"],
        where="global_keypreffix",
        name="option",
    ),
    Ailment("CP409", HEAD + SCHEDULE.replace("work", "wrok") + WORK, (("wrok", "work"),), _is_thrown_away, long=True),
    Ailment(
        "CP410",
        HEAD + SCHEDULE.replace('["a"]', '["a", "b"]') + WORK,
        (('["a", "b"]', '["a"]'),),
        _ends_with_a_type_error,
        long=True,
    ),
    Ailment(
        "CP411",
        HEAD
        + """
from kombu import Queue

app.conf.task_queues = [Queue("$queue")]
app.conf.task_create_missing_queues = False
app.conf.task_routes = {"$name.work": {"queue": "mails"}}
"""
        + WORK,
        (('"mails"', '"$queue"'),),
        cannot_send,
    ),
    Ailment(
        "CP412",
        HEAD + "app.conf.result_expires = None\n" + WORK,
        (("result_expires = None", "result_expires = 3600"),),
        _is_kept,
    ),
    Ailment(
        "CP413",
        HEAD
        + "app.conf.worker_eta_task_limit = None\n"
        + WORK.replace("@app.task", '@app.task(autoretry_for=(ConnectionError,), retry_kwargs={"max_retries": 3})'),
        (("eta_task_limit = None", "eta_task_limit = 10"),),
        _holds_all,
        how={"profile": "production"},
        long=True,
    ),
    Ailment(
        "CP414",
        EQUIPPED
        + """
import time

app.conf.broker_transport_options = {"visibility_timeout": 5}


@app.task(time_limit=60)
@patterns.idempotent(key="text", ttl=timedelta(days=1), lease=timedelta(seconds=2))
def work(text: str = "a") -> None:
    mark("began")
    time.sleep(30)
""",
        (('"visibility_timeout": 5', '"visibility_timeout": 5, "unacked_restore_interval": 1'),),
        _comes_back_late,
        how={"profile": "production"},
        long=True,
    ),
    Ailment(
        "CP416",
        HEAD + "app.conf.worker_eta_task_limit = 5\n" + WORK,
        (),
        _holds_all,
        where="worker_eta_task_limit",
        older=True,
        long=True,
        slow=True,
    ),
    Ailment(
        "CP417",
        HEAD + "app.conf.worker_send_task_events = True\n" + WORK,
        (("events = True", "events = False"),),
        _sends_events,
        how={"profile": "production"},
        long=True,
        name="setting",
    ),
    Ailment(
        "CP417",
        HEAD + SCHEDULE.replace("0.5", "0.1") + WORK,
        (),
        _sends_events,
        workers=(("w", "-B", "-s", "$folder/beat", "-E"),),
        cured_workers=(("w", "-B", "-s", "$folder/beat"),),
        how={"profile": "production"},
        long=True,
        slow=True,
        name="option",
    ),
    Ailment(
        "CP418",
        EQUIPPED + DEAD + FAILS,
        ((', queue_arguments={"x-message-ttl": 500}', ""),),
        _letter_is_gone,
        broker="rabbitmq",
        where="queue ",
        how={"ignore": ("CP403",)},
        long=True,
        name="age",
    ),
    Ailment(
        "CP418",
        EQUIPPED + DEAD.replace('{"x-message-ttl": 500}', '{"x-queue-type": "quorum", "x-delivery-limit": 2}') + FAILS,
        ((', "x-delivery-limit": 2', ""),),
        _letter_is_gone,
        broker="rabbitmq",
        where="queue ",
        how={"ignore": ("CP403",)},
        long=True,
        name="looks",
    ),
    Ailment(
        "CP419",
        HEAD + 'app.conf.accept_content = "json"\n' + WORK,
        (('= "json"', '= ["json"]'),),
        cannot_send,
        where="accept_content",
        name="text",
    ),
    Ailment(
        "CP419",
        EQUIPPED + BURIES.replace("time_limit=60", 'time_limit="60"'),
        (('"60"', "60"),),
        _never_runs,
        where=".work",
        long=True,
        name="limit",
    ),
    Ailment(
        "CP419",
        HEAD + SCHEDULE.replace('["a"]', "(1)") + WORK,
        (("(1)", "(1,)"),),
        _never_sent,
        where='beat_schedule["often"]',
        long=True,
        name="schedule",
    ),
    Ailment(
        "CP420",
        HEAD + 'app.conf.task_serializer = "pickle"\n' + WORK,
        (('"pickle"', '"json"'),),
        _is_refused,
        where="task_serializer",
        long=True,
    ),
    Ailment(
        "CP421",
        HEAD + WORK.replace("@app.task", "@app.task\n@patterns.retry(on=OSError, attempts=2)"),
        (("@app.task", "patterns.use_patterns(app)\n\n\n@app.task"),),
        cannot_send,
        where=".work",
    ),
    Ailment(
        "CP421",
        EQUIPPED.replace('patterns.use_store(app, "$store")\n', "") + BURIES,
        (("patterns.use_patterns(app)\n", 'patterns.use_patterns(app)\npatterns.use_store(app, "$store")\n'),),
        _does_not_start,
        where=".work",
        long=True,
        name="store",
    ),
    Ailment(
        "CP421",
        EQUIPPED
        + "from celery.worker.request import Request\n"
        + BURIES.replace("time_limit=60", "time_limit=60, Request=Request"),
        (("from celery.worker.request", "from celery_patterns.worker"),),
        _does_not_start,
        where=".work",
        long=True,
        name="request",
    ),
    Ailment(
        "CP421",
        EQUIPPED + BURIES.replace("time_limit=60", 'time_limit=60, Request="celery_patterns.workers:Request"'),
        (("celery_patterns.workers", "celery_patterns.worker"),),
        _does_not_start,
        where=".work",
        long=True,
        name="import",
    ),
    Ailment(
        "CP422",
        HEAD + 'app.conf.task_routes = {"$name.wrok": {"queue": "$queue-2"}}\n' + WORK,
        (("wrok", "work"),),
        _goes_elsewhere,
        where="task_routes",
    ),
    Ailment(
        "CP422",
        HEAD + 'app.conf.task_routes = {"work": {"queue": "$queue-2"}}\n' + WORK,
        (('{"work"', '{"$name.work"'),),
        _goes_elsewhere,
        where="task_routes",
        name="short",
    ),
    Ailment(
        "CP423",
        EQUIPPED + BURIES.replace("dead_letter()", 'dead_letter("$queue")'),
        (('dead_letter("$queue")', "dead_letter()"),),
        _does_not_start,
        where="queue ",
        long=True,
    ),
    Ailment(
        "CP424",
        HEAD.replace('broker="$broker"', 'broker="redis://127.0.0.1:$durable/0"') + WORK,
        (),
        _chatters,
        workers=tuple((f"w{number}", "--gossip", "-P", "solo") for number in range(10)),
        cured_workers=tuple((f"w{number}", "-P", "solo") for number in range(10)),
        where="workers",
        how={"profile": "production"},
        long=True,
        slow=True,
    ),
    Ailment(
        "CP415",
        EQUIPPED.replace('"$store"', 'patterns.stores.RedisStore("redis://127.0.0.1:$followed/0", replicas=0)')
        + BURIES,
        (("replicas=0", "replicas=1"),),
        _is_done_twice,
        how={"profile": "production", "ignore": ("CP414",)},
    ),
)


def _key_of(project: Project) -> str:
    """Under which key of Redis a message stands."""
    project.send("work", ignore_result=True)
    connection = project.app.connection_for_write()
    database = redis.Redis(port=int(connection.port), db=int(connection.virtual_host))
    keys = [key.decode() for key in database.scan_iter()]
    return next(key for key in keys if key.endswith(project.values["queue"]) and "binding" not in key)
