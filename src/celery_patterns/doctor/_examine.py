"""The examination: look everything up once, then let each rule read it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from .._fit import expect_app, make_tasks
from ..exceptions import ConfigurationError
from ..letters import standing
from ._case import Case
from ._finding import SEVERITIES, Finding, Rule, UnknownError
from ._module import Module
from ._rules import RULES
from ._servers import Server, ask_servers
from ._source import read_source
from ._workers import Worker, ask_workers

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["IGNORE", "Examination", "Profile", "examine"]

Profile = Literal["development", "production"]

#: The setting that holds what a project ignores, and why.
IGNORE = "patterns_doctor_ignore"
#: For how many seconds a server may be waited for.
_LONGEST = 600.0
#: Seconds that workers have to answer; each that runs does so at once.
_WORKERS_ANSWER = 1.0


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        findings: What is wrong, the worst first.
        ignored: What is wrong and was to be ignored, with the reason for it.
        unchecked: What could not be looked at, and why.
    """

    findings: tuple[Finding, ...]
    ignored: tuple[tuple[Finding, str], ...] = ()
    unchecked: tuple[str, ...] = field(default=())

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those that are errors: promises that do not hold, tasks that are lost, hang or run twice."""
        return tuple(one for one in self.findings if one.severity == "error")


def examine(
    app: Celery,
    *,
    offline: bool = False,
    profile: Profile = "development",
    ignore: Mapping[str, str] | Collection[str] = (),
    source: str | Path | Iterable[str | Path] | None = None,
    timeout: float = 5.0,
) -> Examination:
    """Look for the mistakes that production would find.

    It reads the app's settings as they are in the end, its tasks and their patterns; it connects to the broker, the result
    backend and the store, asks the workers that run, and parses the source in which the tasks are written. It changes
    nothing on any server, needs no administrator's rights, and no password is in what it says. To RabbitMQ it sends one
    empty message that goes to no queue, since only to who sends does it tell that it takes none.

    It does not promise to find every mistake, nor that a server is the same a moment later. What it could not look at is in
    ``unchecked``.

    Args:
        app: Your Celery app. What its ``include`` and ``imports`` name is imported, as a worker does.
        offline: Read the settings only: no server is asked, and no source is read but what ``source`` names.
        profile: ``production`` adds what matters only there.
        ignore: Ids of rules to ignore, ``CP203``, or of one place, ``CP203:queue emails``; best with a reason for each. They
            are added to those of the setting ``patterns_doctor_ignore``.
        source: Files and folders to parse; by default the packages in which the app's tasks are written.
        timeout: Seconds for which each server is waited for; 5 by default. All are asked at once, and workers then have 1
            second more.

    Raises:
        ConfigurationError: When an argument is wrong.
        Exception: What the app's own modules raise when they are imported.
    """
    expect_app(app, "examine()")
    if profile not in get_args(Profile):
        raise ConfigurationError(f'expected profile to be "development" or "production", got {profile!r}')
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= _LONGEST:
        raise ConfigurationError(
            f"expected timeout to be a number of seconds, above 0 and up to {_LONGEST:g}, got {timeout!r}"
        )
    excused = _excused(app, ignore)
    make_tasks(app)  # those that nobody has imported yet are looked at, too
    unread: list[str] = []
    if isinstance(source, str | Path):
        source = [source]
    case = _looked_up(app, unread, offline=offline, source=source, timeout=float(timeout))
    if not case.tasks:
        unread.append("the tasks: the app has none of its own; @app.task makes one, and include names its module")
    findings: list[Finding] = []
    ignored: list[tuple[Finding, str]] = []
    unchecked = dict.fromkeys([*unread, *_unseen(case)])
    for one in RULES:
        if one.production and profile != "production":
            continue
        for found in _findings(one, case, unchecked):
            reason = excused.get(found.id, excused.get(f"{found.id}:{found.where}"))
            if reason is None:
                findings.append(found)
            else:
                ignored.append((found, reason))
    findings.sort(key=lambda one: (SEVERITIES.index(one.severity), one.id))
    return Examination(tuple(findings), tuple(ignored), tuple(unchecked))


def _findings(rule: Rule, case: Case, unchecked: dict[str, None]) -> Iterator[Finding]:
    try:
        yield from rule.findings(case)
    except UnknownError as unknown:
        unchecked.setdefault(str(unknown))
    except Exception as error:  # noqa: BLE001 - settings, routers and annotations are the user's own; others are looked at
        unchecked.setdefault(f"{rule.id}, whose look at this app ended with {type(error).__name__}")


def _unseen(case: Case) -> list[str]:
    servers = [] if isinstance(case.asked, str) else [one.unseen for one in case.asked if one.unseen]
    failed = [] if isinstance(case.answered, str) else [(one.name, one.failed) for one in case.answered if one.failed]
    return servers + [
        f"the worker {name}: its answer to `inspect {questions[0]}` is an error" for name, questions in failed
    ]


def _looked_up(
    app: Celery, unread: list[str], *, offline: bool, source: Iterable[str | Path] | None, timeout: float
) -> Case:
    modules: tuple[Module, ...] | str = "the source: only settings were read"
    if source is not None or not offline:
        modules = read_source(app, None if source is None else [Path(one) for one in source], unread)
    if offline:
        why = "only settings were read"
        return Case(app, f"the servers: {why}", f"the workers: {why}", modules, f"the servers: {why}")
    case = Case(app, "", "", modules, "")
    servers = ask_servers(app, _names_of_queues(case, unread), timeout)
    counted = _Counted(app, case, servers)
    return Case(app, servers, _workers(app, case, servers), modules, counted.wait())


class _Counted:
    """How many letters stand in the app's dead-letter queues: they are counted while the workers are asked."""

    def __init__(self, app: Celery, case: Case, servers: tuple[Server, ...]) -> None:
        self._found: dict[str, int] | str = "dead letters: the broker did not answer in time"
        self._thread = threading.Thread(target=self._count, args=(app, case), daemon=True)
        broken = any(one.trouble is not None for one in servers if one.address.role == "broker")
        if broken or case.transport not in ("amqp", "redis"):  # others say so
            self._found = {}
        else:
            self._thread.start()

    def _count(self, app: Celery, case: Case) -> None:
        try:
            named = {task.dead_queue for task in case.tasks if task.dead_queue is not None}
            self._found = standing(app, sorted(named - case.queues.keys()))
        except Exception as error:  # noqa: BLE001 - whatever the settings, the broker or its driver say
            self._found = f"dead letters: the question for them failed ({type(error).__name__})"

    def wait(self) -> dict[str, int] | str:
        if self._thread.ident is not None:
            self._thread.join(_WORKERS_ANSWER)  # one that is over its time is left to itself
        return self._found


def _names_of_queues(case: Case, unread: list[str]) -> frozenset[str]:
    try:
        return frozenset(case.queues)
    except Exception as error:  # noqa: BLE001 - settings may be anything; what is wrong with them a rule says
        unread.append(f"the app's queues, which cannot be told from its settings ({type(error).__name__})")
        return frozenset()


def _workers(app: Celery, case: Case, servers: tuple[Server, ...]) -> tuple[Worker, ...] | str:
    if case.transport not in ("amqp", "redis"):
        return f"the workers: a broker at {servers[0].address.scheme}:// hands on no questions to them"
    brokers = [one for one in servers if one.address.role == "broker"]
    # Questions are sent where tasks are sent: the first setting's server, or another one of its list.
    writing = [one for one in brokers if one.address.setting == brokers[0].address.setting]
    if all(one.trouble is not None for one in writing):
        return "the workers: they are asked through the broker, which cannot be used"
    if not app.conf.worker_enable_remote_control:
        return "the workers: worker_enable_remote_control is off, so they do not answer"
    return ask_workers(app, _WORKERS_ANSWER)


def _excused(app: Celery, ignore: Any) -> dict[str, str]:
    excused: dict[str, str] = {}
    known = {one.id for one in RULES}
    for where, said in ((IGNORE, app.conf.get(IGNORE)), ("ignore", ignore)):
        if isinstance(said, str):
            raise ConfigurationError(
                f'expected {where} to hold ids of rules, {{"CP203": "why"}}; got the text {said!r}'
            )
        reasons = said if isinstance(said, Mapping) else dict.fromkeys(said or (), "")
        for id_, reason in reasons.items():
            rule, colon, place = str(id_).partition(":")
            if rule.upper() not in known:
                more = "; each is given by itself" if "," in rule else ""
                raise ConfigurationError(f"expected {where} to name rules, for example CP203; got {id_!r}{more}")
            excused[f"{rule.upper()}{colon}{place}"] = str(reason)
    return excused
