"""CP2: the workers that listen."""

from __future__ import annotations

import contextlib

from celery.exceptions import TimeoutError as NoResult

from celery_patterns import dead_letters

from ..projects import Project
from ._ailment import EQUIPPED, HEAD, WORK, Ailment


def _runs_at_once(project: Project) -> bool:
    """Whether what is to wait half a minute does not."""
    _start(project)
    project.send("work", countdown=30, ignore_result=True)
    return project.marked("worked", 8)


def _ends_in_two_ways(project: Project) -> bool:
    """Whether tasks that all do the same end in different states: which worker takes one decides."""
    _start(project)
    sent = [project.send("work") for _ in range(12)]
    assert project.marked("rejects", 30, times=12)
    project.wait(lambda: any(one.state == "FAILURE" for one in sent), 10, "a task that failed")
    with contextlib.suppress(AssertionError):
        project.wait(lambda: all(one.state == "FAILURE" for one in sent), 5, "all failed")
    return len({one.state for one in sent}) == 2


def _start(project: Project) -> None:
    for name, *arguments in project.workers:
        project.worker(*arguments, name=name)


def _no_result_comes(project: Project) -> bool:
    _start(project)
    try:
        return bool(project.send("work").get(timeout=8) != "a")
    except NoResult:
        return True


def _is_done_twice(project: Project) -> bool:
    """Whether what is sent twice, with one key, is done twice."""
    _start(project)
    project.call("place")
    project.call("place")
    assert project.marked("worked")
    return project.marked("worked", 5, times=2)


#: A task with a key.
_KEYED = """

@app.task(name="$queue.work", time_limit=60)
@patterns.idempotent(key="order", ttl=timedelta(days=1))
def work(order: str) -> None:
    mark("worked")


def place() -> None:
    work.delay("o-1")
"""


#: A task that is tried again.
_TRIED = """

from tenacity import wait_fixed


@app.task(name="$queue.work", time_limit=60)
@patterns.retry(on=ConnectionError, attempts=3, wait=wait_fixed(1))
def work() -> None:
    mark("worked")
    raise ConnectionError


def place() -> None:
    work.delay()
"""


def _is_tried_once(project: Project) -> bool:
    """Whether a task that is to be tried three times is tried once."""
    _start(project)
    project.call("place")
    assert project.marked("worked")
    return not project.marked("worked", 8, times=2)


def _does_other_work(project: Project) -> bool:
    _start(project)
    project.call("place")
    return not project.marked("worked", 6)


#: A letter that stands from before.
_BURIED = """
from tests.here import run_here


@app.task(time_limit=60)
@patterns.dead_letter()
def work() -> None:
    raise ValueError


app.finalize()
run_here(app.tasks[work.name], headers={"argsrepr": "()", "kwargsrepr": "{}"})
"""


def _a_letter_waits(project: Project) -> bool:
    """Whether what was asked for is in no queue of tasks, and not done."""
    assert project.app
    letters = dead_letters(project.app, f"{project.values['queue']}.dead")
    return letters.count() == 1


def _its_result_does_not_come(project: Project) -> bool:
    _start(project)
    try:
        return bool(project.call("place") != "a")
    except NoResult:
        return True


def _reads_elsewhere(project: Project) -> bool:
    """Whether the result of what was done is not found."""
    _start(project)
    sent = project.send("work")
    assert project.marked("worked")
    with contextlib.suppress(AssertionError):
        project.wait(lambda: sent.state == "SUCCESS", 4, "it is done")
    return bool(sent.state == "PENDING")


def _one_idles(project: Project) -> bool:
    """Whether one of two workers runs nothing of ten tasks."""
    _start(project)
    for _ in range(10):
        project.send("work", ignore_result=True)
    assert project.marked("worked", times=10)
    return len({mark for mark in project.marks() if mark.startswith("at ")}) == 1


def _does_not_know_it(project: Project) -> bool:
    _start(project)
    project.send("work", ignore_result=True)
    return not project.marked("worked", 6) and "unregistered task" in project.logs()


def _runs_twice(project: Project) -> bool:
    _start(project)
    project.send("work", ignore_result=True)
    return project.marked("began", 14, times=2)


def _runs_past(project: Project) -> bool:
    _start(project)
    project.send("work", ignore_result=True)
    return project.marked("done", 6)


def _is_never_told(project: Project) -> bool:
    _start(project)
    project.send("work", ignore_result=True)
    return not project.marked("tidied", 5)


def _waits_behind_long_ones(project: Project) -> bool:
    """Whether a second worker gets nothing of four long tasks, of which the first runs one."""
    (first, *_), (second, *_) = project.workers
    project.worker(name=first)
    for _ in range(4):
        project.send("work", ignore_result=True)
    assert project.marked("worked")
    project.worker(name=second)
    assert project.marked("worked", 30, times=4)
    return f"at {second}@localhost" not in project.marks()


HERE = (
    WORK.replace("@app.task\n", "@app.task(bind=True)\n")
    .replace("def work(", "def work(self, ")
    .replace('    mark("worked")', '    time.sleep(0.3)\n    mark(f"at {self.request.hostname}")\n    mark("worked")')
)

AILMENTS = (
    Ailment("CP201", HEAD + WORK, (), _no_result_comes, cured_workers=(("w",),), long=True),
    Ailment(
        "CP202",
        HEAD + WORK,
        (),
        _no_result_comes,
        workers=(("w", "-Q", "$queue-2"),),
        cured_workers=(("w",),),
        where="queue ",
        long=True,
    ),
    Ailment(
        "CP202",
        HEAD + WORK,
        (),
        _no_result_comes,
        workers=(("w", "-X", "$queue"),),
        cured_workers=(("w",),),
        where="queue ",
        long=True,
        name="left out",
    ),
    Ailment(
        "CP202",
        HEAD + WORK + '\n\ndef place() -> object:\n    return work.apply_async(queue="$queue-3").get(timeout=5)\n',
        (('queue="$queue-3"', 'queue="$queue"'),),
        _its_result_does_not_come,
        workers=(("w",),),
        where=".py:",
        long=True,
        name="of a call",
    ),
    Ailment(
        "CP203",
        HEAD + "\nimport time\n" + HERE,
        (),
        _one_idles,
        workers=(("w",), ("idle", "-Q", "$queue-2")),
        cured_workers=(("w",), ("idle",)),
        long=True,
        slow=True,
    ),
    Ailment(
        "CP204",
        {"NAME.py": HEAD + WORK, "NAME_old.py": HEAD},
        (),
        _does_not_know_it,
        workers=(("w:old",),),
        cured_workers=(("w",),),
        where="w@",
        long=True,
    ),
    Ailment(
        "CP211",
        {"NAME.py": EQUIPPED + _KEYED, "NAME_old.py": EQUIPPED + _KEYED.replace("@patterns", "# @patterns")},
        (),
        _is_done_twice,
        workers=(("w:old",),),
        cured_workers=(("w",),),
        long=True,
    ),
    Ailment(
        "CP213",
        EQUIPPED + _BURIED,
        (("    raise ValueError", "    return None"),),
        _a_letter_waits,
        where="queue ",
    ),
    Ailment(
        "CP212",
        {"NAME.py": EQUIPPED + _TRIED, "NAME_old.py": EQUIPPED + _TRIED.replace("attempts=3", "attempts=1")},
        (),
        _is_tried_once,
        workers=(("w:old",),),
        cured_workers=(("w",),),
        where="w@",
        long=True,
    ),
    Ailment(
        "CP212",
        {"NAME.py": EQUIPPED + _KEYED, "NAME_old.py": EQUIPPED + _KEYED.replace('mark("worked")', 'mark("was other")')},
        (),
        _does_other_work,
        workers=(("w:old",),),
        cured_workers=(("w",),),
        where="w@",
        long=True,
        name="code",
    ),
    Ailment(
        "CP205",
        HEAD
        + """
from celery.exceptions import Reject
import time


@app.task(acks_late=True, reject_on_worker_lost=True, time_limit=30)
def work() -> None:
    mark("rejects")
    time.sleep(0.3)
    raise Reject("no", requeue=False)
""",
        (),
        _ends_in_two_ways,
        workers=(("w",), ("v+PYTHONPATH=$other_celery",)),
        cured_workers=(("w",), ("v",)),
        how={"ignore": ("CP305",)},
        long=True,
        slow=True,
    ),
    Ailment(
        "CP206",
        EQUIPPED
        + """
import os
import time

app.conf.broker_transport_options = {
    "visibility_timeout": int(os.environ.get("TIMEOUT", "60")),
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}


@app.task(time_limit=20)
@patterns.dead_letter()
def work() -> None:
    mark("began")
    time.sleep(6)
""",
        (),
        _runs_twice,
        workers=(("w",), ("v+TIMEOUT=2",)),
        cured_workers=(("w",), ("v",)),
        long=True,
        slow=True,
    ),
    Ailment(
        "CP206",
        "import os\n"
        + HEAD.replace('"$backend"', 'os.environ.get("RESULTS", "redis://127.0.0.1:$durable/0")')
        + WORK.replace("@app.task", "@app.task(time_limit=60)"),
        (),
        _reads_elsewhere,
        workers=(("w+RESULTS=redis://127.0.0.1:$durable/3",),),
        cured_workers=(("w",),),
        where="workers",
        long=True,
        name="results",
    ),
    Ailment(
        "CP207",
        HEAD
        + "\nimport time\n"
        + WORK.replace("@app.task", "@app.task(time_limit=1)").replace(
            'mark("worked")', 'time.sleep(3)\n    mark("done")'
        ),
        (),
        _runs_past,
        workers=(("w", "-P", "threads"),),
        cured_workers=(("w",),),
        long=True,
    ),
    Ailment(
        "CP208",
        HEAD
        + """
import time

from celery.exceptions import SoftTimeLimitExceeded


@app.task(soft_time_limit=1)
def work() -> None:
    try:
        time.sleep(3)
    except SoftTimeLimitExceeded:
        mark("tidied")
""",
        (),
        _is_never_told,
        workers=(("w", "-P", "threads"),),
        cured_workers=(("w",),),
        long=True,
        slow=True,
    ),
    Ailment(
        "CP209",
        HEAD
        + "app.conf.worker_prefetch_multiplier = 4\n\nimport time\n"
        + HERE.replace("bind=True", "bind=True, time_limit=60").replace("time.sleep(0.3)", "time.sleep(3)"),
        (("worker_prefetch_multiplier = 4", "worker_prefetch_multiplier = 1"),),
        _waits_behind_long_ones,
        workers=(("w",), ("v",)),
        long=True,
        slow=True,
    ),
    Ailment(
        "CP210",
        HEAD + WORK,
        (),
        _runs_at_once,
        workers=(("w+CLOCK_AHEAD=60",),),
        cured_workers=(("w",),),
        long=True,
        slow=True,
    ),
)
