"""What one of them is made of."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..projects import Project

#: How a project begins.
HEAD = """\
from datetime import timedelta

from celery import Celery

import celery_patterns as patterns
from tests.apps.marks import mark

app = Celery("$name", broker="$broker", backend="$backend", set_as_current=False)
app.conf.update(task_default_queue="$queue", control_exchange="c-$queue", broker_connection_timeout=3)
"""
#: The same, equipped; Redis is swept each second for what a killed worker held.
EQUIPPED = f"""{HEAD}patterns.use_patterns(app)
patterns.use_store(app, "$store")
"""
#: A task that does nothing but to be run.
WORK = """

@app.task
def work(text: object = "a") -> object:
    mark("worked")
    return text
"""


@dataclass(frozen=True)
class Ailment:
    """A project that is ill.

    Attributes:
        id: The rule that finds it.
        broken: Its source.
        cure: Texts of it, and what stands in their place once it is cured.
        fails: Whether the failure is seen that the rule predicts.
        broker: What it runs on.
        workers: The arguments of the workers that run while the doctor looks; a name is each one's first.
        cured_workers: The same once it is cured, where that is another one.
        where: A part of the place that is found.
        how: What is said to ``examine()``.
        long: Whether its failure takes long to see.
        older: Whether it is ill on a release of Celery before 5.7, and cured by that.
        slow: Whether the doctor's look at it takes long, too: its servers and workers do, until they run.
        name: What tells it from others of the same rule.
    """

    id: str
    broken: str | dict[str, str]
    cure: tuple[tuple[str, str], ...]
    fails: Callable[[Project], bool]
    broker: Literal["redis", "rabbitmq"] = "redis"
    workers: tuple[tuple[str, ...], ...] = ()
    cured_workers: tuple[tuple[str, ...], ...] | None = None
    where: str = ""
    how: dict[str, Any] = field(default_factory=dict)
    long: bool = False
    older: bool = False
    slow: bool = False
    name: str = ""

    @property
    def label(self) -> str:
        return f"{self.id}-{self.name}" if self.name else self.id

    @property
    def cured(self) -> str | dict[str, str]:
        if isinstance(self.broken, str):
            return self._cured(self.broken)
        return {path: self._cured(text, whole=False) for path, text in self.broken.items()}

    def _cured(self, text: str, *, whole: bool = True) -> str:
        for before, after in self.cure:
            assert before in text or not whole, f"{self.label}: {before!r} is not in its source"
            text = text.replace(before, after)
        return text


def cannot_send(project: Project) -> bool:
    """Whether ``.delay()`` raises; or does not come back."""
    return _outcome(lambda: project.send("work", ignore_result=True, retry=False)) != "sent"


def place_raises(project: Project) -> bool:
    """Whether a function of the project's raises that sends a task."""
    try:
        project.call("place")
    except Exception:
        return True
    return False


def cannot_read(project: Project) -> bool:
    """Whether a result cannot be stored."""
    return _outcome(lambda: project.app.backend.store_result("an-id", 1, "SUCCESS")) != "sent"


def _outcome(do: Callable[[], object], seconds: float = 6.0) -> str:
    said: list[str] = []

    def tried() -> None:
        try:
            do()
        except Exception as error:
            said.append(type(error).__name__)
        else:
            said.append("sent")

    thread = threading.Thread(target=tried, daemon=True)
    thread.start()
    thread.join(seconds)
    return said[0] if said else "hangs"
