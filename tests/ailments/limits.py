"""CP3: numbers that contradict each other."""

from __future__ import annotations

from typing import Any

from celery.exceptions import TimeoutError as NoResult

from celery_patterns.exceptions import InProgress

from ..projects import Project
from ._ailment import EQUIPPED, HEAD, Ailment

#: Redis is looked through every second.
SWEPT = 'app.conf.broker_transport_options = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}\n'
CONFIRMED = 'app.conf.broker_transport_options = {"confirm_publish": True}\n'
LONGER = (('"visibility_timeout": 2', '"visibility_timeout": 100'),)


def _marks(mark: str, *, times: int = 1, seconds: float = 12.0, concurrency: int = 1) -> Any:
    """Whether it is marked so often, by a worker that runs the task."""

    def fails(project: Project) -> bool:
        project.worker(concurrency=concurrency)
        project.send("work", ignore_result=True)
        return project.marked(mark, seconds, times)

    return fails


def _is_never(mark: str, seconds: float = 8.0) -> Any:
    marks = _marks(mark, seconds=seconds)
    return lambda project: not marks(project)


def _is_not_tidied(project: Project) -> bool:
    try:
        return bool(_is_never("tidied", 6)(project))
    except ValueError:  # Celery 5.7 sends no such task
        return True


def _is_cut_off(project: Project) -> bool:
    worker = project.worker()
    project.send("work", ignore_result=True)
    assert project.marked("began")
    try:
        project.wait(lambda: "PRECONDITION_FAILED" in worker.text(), 12, "the broker gives up")
    except AssertionError:
        return False
    return True


def _is_lost_with_its_worker(project: Project) -> bool:
    first = project.worker()
    project.send("work", ignore_result=True)
    assert project.marked("began")
    first.kill()
    project.worker(name="second")
    return not project.marked("began", 8, times=2)


def _early_part_is_gone(project: Project) -> bool:
    project.worker()
    early = project.send("quick")
    late = project.send("work")
    late.get(timeout=30)
    return bool(early.state == "PENDING")


def _runs_an_ended_attempt(project: Project) -> bool:
    """A second delivery of the first attempt comes when that has ended: its copy, three seconds later."""
    project.worker(concurrency=2)
    project.send("work", task_id="the-one", ignore_result=True)
    project.send("work", task_id="the-one", ignore_result=True, countdown=3)
    return project.marked("began", 14, times=3)


def _gives_up(project: Project) -> bool:
    project.worker(concurrency=2)
    first = project.send("work")
    assert project.marked("began")
    try:
        answer = project.send("work").get(timeout=40)
    except InProgress:
        assert first.get(timeout=20) == "done"
        return True
    except NoResult:
        raise AssertionError("the duplicate has no answer") from None
    assert answer == "done"
    return False


def _task(options: str, body: str, *patterns: str) -> str:
    lines = "".join(f"@patterns.{pattern}\n" for pattern in patterns)
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    return f"\nimport os\nimport time\n\nfrom tenacity.wait import wait_fixed, wait_none\n\n\n@app.task{options}\n{lines}def work(text: str = 'a') -> object:\n{indented}"


SLOW = 'mark("began")\ntime.sleep(5)\nreturn "done"'
KILLS = 'mark("began")\nos.kill(os.getpid(), 9)'

AILMENTS = (
    Ailment(
        "CP301",
        EQUIPPED + SWEPT + _task("(time_limit=10)", SLOW, "dead_letter()"),
        LONGER,
        _marks("began", times=2, concurrency=2),
        long=True,
    ),
    Ailment(
        "CP302",
        EQUIPPED + SWEPT + _task("", SLOW, "dead_letter()"),
        (("@app.task\n", "@app.task(time_limit=1)\n"),),
        _marks("began", times=2, concurrency=2),
        long=True,
    ),
    Ailment(
        "CP303",
        EQUIPPED
        + SWEPT
        + _task(
            "",
            'mark(f"began {patterns.current_call().attempt}")\nraise ConnectionError',
            "retry(on=ConnectionError, attempts=2, wait=wait_fixed(8))",
        ),
        LONGER,
        _marks("began 2", times=2, seconds=16, concurrency=2),
        long=True,
    ),
    Ailment(
        "CP304",
        EQUIPPED.replace('broker="$broker"', 'broker="amqp://127.0.0.1:$impatient//"')
        + CONFIRMED
        + _task("(time_limit=1800)", 'mark("began")\ntime.sleep(10)', "dead_letter()"),
        (("time_limit=1800", "time_limit=1"),),
        _is_cut_off,
        long=True,
        slow=True,
    ),
    Ailment(
        "CP305",
        EQUIPPED + _task("(acks_late=True, reject_on_worker_lost=True, time_limit=60)", KILLS),
        (
            (
                "reject_on_worker_lost=True, time_limit=60)\n",
                "reject_on_worker_lost=True, time_limit=60)\n@patterns.dead_letter()\n",
            ),
        ),
        _marks("began", times=5, seconds=30),
        long=True,
    ),
    Ailment(
        "CP306",
        EQUIPPED
        + _task(
            "(acks_late=True, time_limit=60)",
            f"if not os.path.exists('$folder/marks'):\n    {'; '.join(KILLS.splitlines())}\nmark('done')",
        ),
        (("(acks_late=True, time_limit=60)\n", "(time_limit=60)\n@patterns.dead_letter()\n"),),
        _is_never("done", 12),
        long=True,
    ),
    Ailment(
        "CP307",
        EQUIPPED
        + CONFIRMED
        + _task("(acks_late=False, time_limit=60)", 'mark("began")\ntime.sleep(30)', "dead_letter()"),
        (("acks_late=False, ", ""),),
        _is_lost_with_its_worker,
        broker="rabbitmq",
        long=True,
    ),
    Ailment(
        "CP308",
        EQUIPPED + _task("(acks_late=True, acks_on_failure_or_timeout=False, time_limit=1)", SLOW),
        (
            (
                "(acks_late=True, acks_on_failure_or_timeout=False, time_limit=1)\n",
                "(time_limit=1)\n@patterns.dead_letter()\n",
            ),
        ),
        _marks("began", times=3),
        how={"ignore": ("CP306",)},
        long=True,
    ),
    Ailment(
        "CP309",
        HEAD
        + "app.conf.update(task_soft_time_limit=2, task_time_limit=1)\n"
        + _task(
            "",
            "from celery.exceptions import SoftTimeLimitExceeded\ntry:\n    time.sleep(9)\nexcept SoftTimeLimitExceeded:\n    mark('tidied')",
        ),
        (("task_soft_time_limit=2, task_time_limit=1", "task_soft_time_limit=1, task_time_limit=5"),),
        _is_not_tidied,
        long=True,
    ),
    Ailment(
        "CP310",
        EQUIPPED
        + "app.conf.result_expires = 2\n\n\n@app.task\ndef quick() -> int:\n    return 1\n\n"
        + _task(
            "",
            "if patterns.current_call().attempt == 1:\n    raise ConnectionError\nreturn 2",
            "retry(on=ConnectionError, attempts=2, wait=wait_fixed(5))",
        ),
        (("result_expires = 2", "result_expires = 60"),),
        _early_part_is_gone,
        long=True,
    ),
    Ailment(
        "CP311",
        EQUIPPED
        + _task(
            "(time_limit=3)",
            "mark('began')\nraise ConnectionError",
            "idempotent(key='text', ttl=timedelta(seconds=1))",
            "retry(on=ConnectionError, attempts=2, wait=wait_fixed(6))",
        ),
        (("ttl=timedelta(seconds=1)", "ttl=timedelta(days=1)"),),
        _runs_an_ended_attempt,
        long=True,
    ),
    Ailment(
        "CP312",
        EQUIPPED
        + _task(
            "(time_limit=60)", SLOW, "idempotent(key='text', ttl=timedelta(days=1), wait_within=timedelta(seconds=1))"
        ),
        (("wait_within=timedelta(seconds=1)", "wait_within=timedelta(seconds=120)"),),
        _gives_up,
        long=True,
    ),
    Ailment(
        "CP313",
        HEAD
        + _task(
            "(soft_time_limit=1, autoretry_for=(Exception,), default_retry_delay=0, retry_kwargs={'max_retries': 2})",
            "mark('began')\ntime.sleep(9)",
        ),
        (("autoretry_for=(Exception,)", "autoretry_for=(ConnectionError,)"),),
        _marks("began", times=2),
        long=True,
    ),
    Ailment(
        "CP314",
        HEAD
        + _task(
            "(autoretry_for=(ValueError,), max_retries=None, default_retry_delay=0)",
            "mark('began')\nraise ValueError",
        ),
        (("max_retries=None", "max_retries=2"),),
        _marks("began", times=6),
        long=True,
    ),
)
