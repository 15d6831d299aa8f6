"""Mistakes that beginners make, each in a project of its own, as the command tells them."""

from __future__ import annotations

from typing import Any

import pytest

from celery_patterns.doctor import examine

from .ailments import AILMENTS, Ailment
from .test_doctor import make  # noqa: F401 - a fixture

_KNOWN = {one.label: one for one in AILMENTS}
_GUEST = Ailment(
    "CP111",
    _KNOWN["CP102-broker"].broken.replace("redis://127.0.0.1:$closed/0", "amqp://guest:guest@127.1:$rabbit_port//"),  # type: ignore[union-attr]
    (),
    lambda _: True,
)
#: What is wrong, the project, and whether a worker can run.
BEGINNERS = {
    "no worker": (_KNOWN["CP201"], False),
    "worker on another queue": (_KNOWN["CP202"], True),
    "wrong port": (_KNOWN["CP106-web"], False),
    "nothing at the port": (_KNOWN["CP102-broker"], False),
    "wrong password": (_KNOWN["CP104-rabbitmq"], False),
    "wrong vhost": (_KNOWN["CP105-rabbitmq"], False),
    "guest off localhost": (_GUEST, True),
    "pickle accepted": (_KNOWN["CP113"], True),
    "get() in a task": (_KNOWN["CP501"], True),
    "unserialisable argument": (_KNOWN["CP509"], True),
    "no backend, results read": (_KNOWN["CP510"], True),
    "results ignored, but awaited": (_KNOWN["CP511"], True),
    "task not registered": (_KNOWN["CP204"], True),
    "equip() forgotten": (_KNOWN["CP421"], False),
    "the store forgotten": (_KNOWN["CP421-store"], False),
    "dead letters where tasks go": (_KNOWN["CP423"], False),
}


@pytest.mark.parametrize("mistake", BEGINNERS)
def test_a_beginners_mistake_is_the_first_line(mistake: str, make: Any) -> None:  # noqa: F811
    """The command's first line names it, it is the only finding, and the exit code is 1."""
    ailment, works = BEGINNERS[mistake]
    project = make(ailment, False)
    for name, *arguments in project.workers or ((("w",),) if works else ()):
        project.worker(*arguments, name=name, C_FORCE_ROOT="1")
    told = project.command("patterns", "doctor")
    assert told.returncode == 1
    assert not told.stderr or ailment.label == "CP421"  # which the library says of itself, too
    lines = told.stdout.splitlines()
    assert lines[0].startswith(f"{ailment.id} error")
    assert [line for line in lines if line.startswith("CP")] == lines[:1]
    assert lines[-1] == "1 error."


def test_the_line_that_starts_a_worker_leaves_the_dead_letters_out(make: Any) -> None:  # noqa: F811
    """Where `task_queues` lists their queue, too, a worker without -Q would not start."""
    known = _KNOWN["CP423"]
    code = known.cured
    assert isinstance(code, str)
    listed = code + (
        "from kombu import Queue\n"
        'app.conf.task_queues = [Queue("$queue", routing_key="$queue"), Queue("$queue.dead", routing_key="$queue.dead")]\n'
    )
    project = make(Ailment("CP201", listed, (), lambda _: True), False)
    (found,) = examine(project.app, offline=False).findings
    assert found.id == "CP201"
    letters = f"{project.values['queue']}.dead"
    assert f"worker -l INFO -X {letters}. Without -X it would consume {letters}, and refuse to start." in found.cure
    project.worker("-X", letters)
    assert examine(project.app).findings == ()
