"""CP5: what is written in a project's source."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any

from kombu.exceptions import EncodeError

from celery_patterns import dead_letters

from ..projects import Project
from ._ailment import EQUIPPED, HEAD, WORK, Ailment, place_raises


def _does_not_come(project: Project) -> bool:
    """Whether the result is not what the task returned; a worker runs."""
    project.worker()
    try:
        return bool(project.call("place") != "a")
    except (NotImplementedError, AttributeError):
        return True


def _worker_does(name: str, mark: str, *, times: int = 1, seconds: float = 10.0) -> Any:
    """Whether it is marked, by a worker that runs the task."""

    def fails(project: Project) -> bool:
        project.worker()
        project.send(name, ignore_result=True)
        return project.marked(mark, seconds, times)

    return fails


def _runs_twice(project: Project) -> bool:
    project.worker()
    project.worker(name="second")
    project.call("place")
    assert project.marked("worked")
    return project.marked("worked", 8, times=2)


def _never_done(project: Project) -> bool:
    worker = project.worker()
    project.send("work")
    return not project.marked("waited", 6) and "RuntimeError" in worker.text()


def _is_not_found(project: Project) -> bool:
    project.call("engine").connect().exec_driver_sql("CREATE TABLE orders (id INTEGER)")
    project.worker()
    project.call("place")
    assert project.marked("looked")
    return "found 0" in project.marks()


def _ran_here(project: Project) -> bool:
    project.worker()
    project.call("place")
    assert project.marked("worked")
    return f"in {os.getpid()}" in project.marks()


def _script_sends_nothing_known(project: Project) -> bool:
    project.worker()
    script = [sys.executable, str(project.folder / f"{project.name}.py")]
    subprocess.run(script, env=project.environment, check=True, timeout=60)
    return not project.marked("worked", 6)


def _finds_what_was_left(project: Project) -> bool:
    project.worker()
    project.send("work", ignore_result=True)
    project.send("work", ignore_result=True)
    assert project.marked("worked", times=2)
    return "seen 2" in project.marks()


def _never_fails(project: Project) -> bool:
    """Whether the result of a rejected task does not come."""
    project.worker()
    sent = project.send("work")
    assert project.marked("rejects")
    with contextlib.suppress(AssertionError):
        project.wait(lambda: sent.state == "FAILURE", 4, "it has failed")
    return bool(sent.state != "FAILURE")


def _is_not_done(project: Project) -> bool:
    """Whether a body is not run that is asked for; a worker runs."""
    project.worker()
    with contextlib.suppress(AttributeError):  # a function has no delay()
        project.call("place")
    return not project.marked("worked", 6)


def _marks_after_place(mark: str, *, times: int = 1) -> Any:
    """Whether a worker does not mark this, or not so often, behind what is asked for."""

    def fails(project: Project) -> bool:
        project.worker()
        project.call("place")
        return not project.marked(mark, 8, times)

    return fails


_is_not_tried_again = _marks_after_place("worked", times=2)
_is_not_charged = _marks_after_place("worked 1")
_is_not_right = _marks_after_place("worked True")
#: A task that fails with an error that is to be tried again.
_AGAIN = """
import socket

from tenacity import wait_fixed


@app.task(time_limit=60)
@patterns.retry(on=ON, wait=wait_fixed(1))
def work() -> None:
    mark("worked")
    raise RAISED


def place() -> None:
    work.delay()
"""


def _again(on: str, raised: str) -> str:
    return _AGAIN.replace("ON", on).replace("RAISED", raised)


def _is_worked_twice(project: Project) -> bool:
    """Whether one order that is asked for twice is done twice."""
    project.worker()
    project.call("place")
    project.call("place")
    assert project.marked("worked")
    return project.marked("worked", 5, times=2)


def _is_sent_by_a_start(project: Project) -> bool:
    """Whether a worker that starts, and is asked for nothing, has something to do."""
    project.worker()
    return project.marked("worked", 6)


def _fails_when_done(project: Project) -> bool:
    """Whether the body is done, and the task fails."""
    project.worker()
    try:
        return project.call("place") is None
    except EncodeError:
        return project.marked("worked")


def _one_is_not_done(project: Project) -> bool:
    """Whether of two tasks that are sent one is never run: which one is chance."""
    project.worker()
    project.call("place")
    project.wait(lambda: len(project.marks()) > 1, 20, "two messages are done")
    return not ({"other", "worked"} <= set(project.marks()))


def _leaves_no_letter(project: Project) -> bool:
    project.worker()
    project.call("place")
    assert project.marked("worked")
    letters = dead_letters(project.app, f"{project.values['queue']}.dead")
    with contextlib.suppress(AssertionError):
        project.wait(lambda: letters.count() > 0, 4, "a letter stands")
    return letters.count() == 0


def _is_thrown_away(project: Project) -> bool:
    worker = project.worker()
    project.app.send_task(f"{project.name}.extra.work", ignore_result=True)
    seen = project.marked("worked", 6)
    assert seen or "unregistered task" in worker.text()
    return not seen


AILMENTS = (
    Ailment(
        "CP501",
        HEAD
        + WORK.replace("work", "inner")
        + """

@app.task
def work() -> None:
    result = inner.delay()
    result.get(timeout=5)
    mark("waited")
""",
        (("    result = inner.delay()\n    result.get(timeout=5)\n", "    inner.delay()\n"),),
        _never_done,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP502",
        HEAD
        + """
import time
from pathlib import Path

import sqlalchemy as sa

db = sa.create_engine("sqlite:///$folder/rows.db")


@app.task(ignore_result=True)
def work() -> None:
    with db.connect() as connection:
        mark(f"found {connection.exec_driver_sql('SELECT count(*) FROM orders').scalar()}")
    mark("looked")


def the_rest() -> None:
    marks, deadline = Path("$folder/marks"), time.monotonic() + 20
    while not marks.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def place() -> None:
    with db.begin() as connection:
        connection.exec_driver_sql("INSERT INTO orders VALUES (1)")
        work.delay()
        the_rest()


def engine() -> sa.Engine:
    return db
""",
        (("        work.delay()\n        the_rest()\n", "    work.delay()\n"),),
        _is_not_found,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP514",
        HEAD.replace('Celery("$name"', 'Celery("another"')
        + WORK
        + '\n\nif __name__ == "__main__":\n    work.delay()\n',
        (('Celery("another"', 'Celery("$name"'),),
        _script_sends_nothing_known,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP503",
        HEAD
        + """
import os


@app.task(ignore_result=True)
def work() -> None:
    mark(f"in {os.getpid()}")
    mark("worked")


def place() -> None:
    work()
""",
        (("    work()\n", "    work.delay()\n"),),
        _ran_here,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP504",
        EQUIPPED
        + """
from pathlib import Path

from tenacity.wait import wait_none


class client:
    @staticmethod
    def post(path: str, headers: dict[str, str]) -> None:
        known = Path("$folder") / headers.get("Idempotency-Key", "none").replace(":", "-")
        if "Idempotency-Key" not in headers or not known.exists():
            known.touch()
            mark("charged")


@app.task(time_limit=60)
@patterns.retry(on=ConnectionError, attempts=3, wait=wait_none())
def work(order: str = "o-1") -> None:
    client.post("/charges", headers={})
    raise ConnectionError
""",
        (
            ("@patterns.retry", '@patterns.idempotent(key="order", ttl=timedelta(days=1))\n@patterns.retry'),
            ("headers={})", 'headers={"Idempotency-Key": patterns.current_claim().key})'),
        ),
        _worker_does("work", "charged", times=2, seconds=6),
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP505",
        HEAD
        + """
import time


@app.task(soft_time_limit=1, time_limit=4)
def work() -> None:
    try:
        time.sleep(3)
    except Exception:
        pass
    mark("went on")
""",
        (("except Exception:", "except ConnectionError:"),),
        _worker_does("work", "went on", seconds=5),
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP525",
        EQUIPPED
        + """

@app.task(time_limit=60)
@patterns.dead_letter()
def work() -> None:
    try:
        mark("worked")
        raise ConnectionError
    except Exception as error:
        print(error)


def place() -> None:
    work.delay()
""",
        (("        print(error)", "        print(error)\n        raise"),),
        _leaves_no_letter,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP526",
        EQUIPPED + _again("ConnectionError, attempts=1", "ConnectionError"),
        (("attempts=1", "attempts=2"),),
        _is_not_tried_again,
        long=True,
        name="attempts",
    ),
    Ailment(
        "CP526",
        EQUIPPED + "from celery.exceptions import TimeoutError\n" + _again("TimeoutError", "socket.timeout"),
        (("from celery.exceptions import TimeoutError\n", ""),),
        _is_not_tried_again,
        long=True,
        name="import",
    ),
    Ailment(
        "CP526",
        EQUIPPED + _again("(KeyError or OSError)", "ConnectionError"),
        (("KeyError or OSError", "KeyError, OSError"),),
        _is_not_tried_again,
        where=".py:",
        long=True,
        name="or",
    ),
    Ailment(
        "CP527",
        EQUIPPED
        + """
import uuid


@app.task(time_limit=60)
@patterns.idempotent(key=lambda order: f"{order} {uuid.uuid4()}", ttl=timedelta(days=1))
def work(order: str) -> None:
    mark("worked")


def place() -> None:
    work.delay("o-1")
""",
        ((' {uuid.uuid4()}"', '"'),),
        _is_worked_twice,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP528",
        HEAD
        + """

@app.task(ignore_result=True)
def work(amount: int) -> None:
    mark(f"worked {ammount}")


def place() -> None:
    work.delay(1)
""",
        (("{ammount}", "{amount}"),),
        _is_not_charged,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP529",
        HEAD
        + """
from decimal import Decimal


@app.task(ignore_result=True)
def work(amount: Decimal) -> None:
    mark(f"worked {amount * Decimal(1) == 1}")


def place() -> None:
    work.delay("1")
""",
        (('delay("1")', "delay(1)"),),
        _is_not_right,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP506",
        HEAD
        + """

@app.task(bind=True)
def work(self) -> None:
    self.seen = getattr(self, "seen", 0) + 1
    mark(f"seen {self.seen}")
    mark("worked")
""",
        (('self.seen = getattr(self, "seen", 0) + 1', "seen = 1"), ("{self.seen}", "{seen}")),
        _finds_what_was_left,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP507",
        HEAD
        + WORK
        + """

class Manager:
    def get(self, pk: int) -> "Order":
        return Order()


class Order:
    objects, pk = Manager(), 1


def place() -> None:
    order = Order.objects.get(pk=1)
    work.delay(order)
""",
        (("work.delay(order)", "work.delay(order.pk)"),),
        place_raises,
        where=".py:",
    ),
    Ailment(
        "CP508",
        {
            "NAME/__init__.py": HEAD + "\napp.conf.include = []\n",
            "NAME/extra.py": "from tests.apps.marks import mark\n\nfrom . import app\n" + WORK,
        },
        (("include = []", 'include = ["$name.extra"]'),),
        _is_thrown_away,
        where="extra.py:",
        long=True,
    ),
    Ailment(
        "CP515",
        EQUIPPED
        + """

@patterns.retry(on=ConnectionError)
def work() -> None:
    mark("worked")


def place() -> None:
    work.delay()


@app.task(time_limit=60)
def other() -> None: ...
""",
        (("@patterns.retry", "@app.task(time_limit=60)\n@patterns.retry"),),
        _is_not_done,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP516",
        EQUIPPED
        + """

class OrderTask(patterns.PatternTask):
    patterns = (patterns.dead_letter(),)
    time_limit = 60


@app.task
def work() -> None:
    mark("worked")
    raise ValueError


def place() -> None:
    work.delay()
""",
        (("@app.task\n", "@app.task(base=OrderTask)\n"),),
        _leaves_no_letter,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP516",
        EQUIPPED
        + """app.set_current()


class Work(patterns.PatternTask):
    patterns = (patterns.dead_letter(),)
    time_limit = 60

    def run(self) -> None:
        mark("worked")


work = Work()


@app.task
def other() -> None: ...


def place() -> None:
    work.delay()
""",
        (("work = Work()", "work = app.register_task(Work())"),),
        _is_not_done,
        where=".py:",
        long=True,
        name="sent",
    ),
    Ailment(
        "CP517",
        HEAD
        + """

@app.task(name="$name.first")
def other() -> None:
    mark("other")


@app.task(name="$name.first")
def work() -> None:
    mark("worked")


def place() -> None:
    other.delay()
    work.delay()
""",
        (('@app.task(name="$name.first")\ndef work', "@app.task\ndef work"),),
        _one_is_not_done,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP518",
        HEAD + WORK + '\n\ndef place() -> None:\n    work.s("o-1")\n',
        (('work.s("o-1")', 'work.delay("o-1")'),),
        _is_not_done,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP519",
        HEAD
        + """

@app.task
def work(self: object, order: str) -> None: ...


def place() -> None:
    work.delay("o-1")
""",
        (("@app.task\n", "@app.task(bind=True)\n"),),
        place_raises,
        where=".py:",
    ),
    Ailment(
        "CP519",
        HEAD
        + """

class Shop:
    @app.task
    def work(self, order: str) -> None: ...


def place() -> None:
    Shop().work.delay("o-1")
""",
        (
            ("    @app.task\n    def work(self, order: str)", "    pass\n\n\n@app.task\ndef work(order: str)"),
            ("Shop().work", "work"),
        ),
        place_raises,
        where=".py:",
        name="method",
    ),
    Ailment(
        "CP520",
        HEAD + WORK + '\n\ndef place() -> None:\n    app.send_task("work")\n',
        (('app.send_task("work")', 'app.send_task("$name.work")'),),
        _is_not_done,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP521",
        HEAD + WORK + '\n\nif __name__ == "main":\n    work.delay()\n',
        (('"main"', '"__main__"'),),
        _script_sends_nothing_known,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP522",
        HEAD + WORK + "\n\nwork.delay()\n",
        (("\nwork.delay()", "\ndef place() -> None:\n    work.delay()"),),
        _is_sent_by_a_start,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP523",
        HEAD + WORK + "\n\ndef place() -> object:\n    return work.delay().result\n",
        ((".result", ".get(timeout=9)"),),
        _does_not_come,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP524",
        HEAD
        + """

@app.task
def work() -> object:
    mark("worked")
    return {"a", "b"}


def place() -> object:
    return work.delay().get(timeout=9)
""",
        (('{"a", "b"}', '["a", "b"]'),),
        _fails_when_done,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP514",
        HEAD.replace('Celery("$name"', "Celery(__name__") + WORK + '\n\nif __name__ == "__main__":\n    work.delay()\n',
        (("Celery(__name__", 'Celery("$name"'),),
        _script_sends_nothing_known,
        where=".py:",
        long=True,
        name="of its file's name",
    ),
    Ailment(
        "CP509",
        HEAD + WORK + "\n\ndef place() -> None:\n    work.delay({1, 2})\n",
        (("{1, 2}", "[1, 2]"),),
        place_raises,
        where=".py:",
    ),
    Ailment(
        "CP510",
        HEAD.replace(', backend="$backend"', "")
        + WORK
        + "\n\ndef place() -> object:\n    return work.delay().get(timeout=9)\n",
        (('broker="$broker"', 'broker="$broker", backend="$backend"'),),
        _does_not_come,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP512",
        HEAD
        + """
app.conf.broker_transport_options = {
    "visibility_timeout": 2,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}
"""
        + WORK
        + "\n\ndef place() -> None:\n    work.apply_async(countdown=4 * 2, ignore_result=True)\n",
        (('"visibility_timeout": 2', '"visibility_timeout": 100'),),
        _runs_twice,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP511",
        HEAD
        + WORK.replace("@app.task", "@app.task(ignore_result=True)")
        + "\n\ndef place() -> object:\n    return work.delay().get(timeout=9)\n",
        (("@app.task(ignore_result=True)", "@app.task"),),
        _does_not_come,
        where=".py:",
        long=True,
    ),
    Ailment(
        "CP513",
        HEAD
        + """
from celery.exceptions import Reject


@app.task
def work() -> None:
    mark("rejects")
    raise Reject("no", requeue=False)
""",
        (),
        _never_fails,
        where=".py:",
        older=True,
        long=True,
        slow=True,
    ),
)
