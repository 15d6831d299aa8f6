"""The doctor: each rule finds its broken project, whose failure is seen, and is silent on the cured one, where it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import celery
import pytest

from celery_patterns.doctor import RULES

from .ailments import AILMENTS, Ailment
from .doctor_table import PAGE, with_table
from .projects import Project
from .servers import RabbitServer, Server, free_port
from .strangers import TLS, mute, other_redis, web
from .test_failover import House, Replica


class Values(dict[str, str]):
    """What a project's source may name; servers of its own are started when it does."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path, stack: ExitStack) -> None:
        super().__init__()
        self.servers: list[Server | House] = []
        self._request, self._stack = request, stack
        self["folder"], self["queue"], self["ca"] = str(folder), f"q-{uuid.uuid4().hex[:10]}", str(TLS / "ca.pem")
        for name in ("redis", "rabbit", "postgres"):
            self[f"{name}_port"] = os.environ[f"TESTS_{name.upper()}_PORT"]

    def __missing__(self, name: str) -> str:
        if name in ("broker", "backend", "store", "redis"):
            made = str(self._request.getfixturevalue("database"))
        elif name in ("rabbit", "postgres"):
            made = str(self._request.getfixturevalue(name))
        elif name in SERVERS:
            found = SERVERS[name](self._stack)
            if isinstance(found, Server | House):
                self.servers.append(found)
                found = found.primary.port if isinstance(found, House) else found.port
            made = str(found)
        else:
            raise KeyError(name)
        self[name] = made
        return made


class _Told(RabbitServer):
    """RabbitMQ with a setting of its own."""

    def __init__(self, setting: str) -> None:
        super().__init__()
        self._setting = setting

    def environment(self) -> Any:
        config = self.folder / "advanced.config"
        config.write_text(f"[{{rabbit, [{self._setting}]}}].\n")
        return {**super().environment(), "RABBITMQ_ADVANCED_CONFIG_FILE": str(config)}


def _replica(stack: ExitStack) -> Server:
    primary = stack.enter_context(other_redis())
    replica = Replica(primary.port)
    stack.callback(replica.close)
    replica.start()
    return replica


def _other_celery(stack: ExitStack) -> str:
    """A folder with another release of Celery than the one that is installed."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    # What the newer one needs beside what the older one has; pip would bring newer releases of everything.
    releases = (
        ["celery~=5.5.0"]
        if celery.VERSION[:2] >= (5, 7)
        else ["celery~=5.7.0", "kombu~=5.7.0", "redis~=6.2", "tzlocal"]
    )
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *releases]
    subprocess.run(install, check=True, capture_output=True)
    return folder


def _redis(*words: str, **how: Any) -> Callable[[ExitStack], Server | int]:
    return lambda stack: stack.enter_context(other_redis(*words, **how))


def _rabbit(setting: str) -> Callable[[ExitStack], Server]:
    def started(stack: ExitStack) -> Server:
        server = _Told(setting)
        stack.callback(server.close)
        server.start()
        return server

    return started


def _house(stack: ExitStack) -> House:
    house = House()
    stack.callback(house.close)
    return house


_LITTLE = ("--maxmemory", "3mb", "--maxmemory-policy")
SERVERS: dict[str, Callable[[ExitStack], Server | House | int | str]] = {
    "closed": lambda _: free_port(),
    "mute": lambda stack: stack.enter_context(mute()),
    "web": lambda stack: stack.enter_context(web()),
    "locked": _redis(password="a-secret"),
    "tls": _redis(tls=True),
    "locked_tls": _redis(password="a-secret", tls=True),
    "evicting": _redis(*_LITTLE, "allkeys-lru"),
    "refusing": _redis(*_LITTLE, "noeviction"),
    "forgetful": _redis("--appendonly", "no"),
    "durable": _redis(),
    # Three seconds for an acknowledgement, looked at each second; and a disk that is too small.
    "impatient": _rabbit("{consumer_timeout, 3000}, {channel_tick_interval, 1000}"),
    "alarmed": _rabbit("{disk_free_limit, 1000000000000000}"),
    "other_celery": _other_celery,
    "known": _redis(
        "--requirepass", "a-secret", "--user", "admin", "on", ">admin", "~*", "&*", "+@all", password="a-secret"
    ),
    "spare": _redis(),
    "replica": _replica,
    "followed": _house,
}


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Ailment, bool], Project]]:
    """Writes a project that is ill, or cured."""
    projects: list[Project] = []
    with ExitStack() as stack:

        def made(ailment: Ailment, cured: bool) -> Project:
            folder = tmp_path / ("cured" if cured else "ill")
            values = Values(request, folder, stack)
            if ailment.broker == "rabbitmq":
                values["broker"] = values["rabbit"]
            for before in projects:  # its tasks would be in the next one's app, too
                before.close()
            project = Project(folder, ailment.cured if cured else ailment.broken, values)
            cured_workers = ailment.workers if ailment.cured_workers is None else ailment.cured_workers
            project.workers = cured_workers if cured else ailment.workers
            # Of the two releases the one that is not installed is a folder that comes first on the path.
            if ailment.older and (celery.VERSION[:2] >= (5, 7)) is not cured:
                project.environment["PYTHONPATH"] = (
                    f"{values['other_celery']}{os.pathsep}{project.environment['PYTHONPATH']}"
                )
            projects.append(project)
            return project

        yield made
        for project in projects:
            project.close()


def _found(project: Project, ailment: Ailment) -> list[tuple[str, str]]:
    """Ids and places of what the doctor finds while the project's workers run."""
    running = [project.worker(*arguments, name=name, ready=False) for name, *arguments in project.workers]
    for one in running:
        one.wait_ready()
    nobody = {"CP201"} if not running and ailment.id != "CP201" else set()
    # Older releases lack what some cures name.
    lacking = {"CP416"} if celery.VERSION[:2] < (5, 7) and ailment.id != "CP416" else set()
    how = {**ailment.how, "ignore": {*ailment.how.get("ignore", ()), *nobody, *lacking}}
    if ailment.older:
        ignored = (word for id_ in how["ignore"] for word in ("--ignore", id_))
        told = project.command("patterns", "doctor", "--json", *ignored)
        return [(one["id"], one["where"]) for one in json.loads(told.stdout)["findings"]]
    examined = project.examine(**how)
    assert not [what for what in examined.unchecked if what.startswith("CP")]
    return [(one.id, one.where) for one in examined.findings]


@pytest.mark.parametrize(
    "ailment",
    [pytest.param(one, id=one.label, marks=[pytest.mark.long] if one.slow else []) for one in AILMENTS],
)
def test_a_rule_finds_what_is_ill(ailment: Ailment, make: Any) -> None:
    """It finds the broken project, in the right place, and nothing else; on the cured one the doctor is silent."""
    found = _found(make(ailment, False), ailment)
    assert [id_ for id_, _ in found] == [ailment.id]
    assert ailment.where in found[0][1]
    assert _found(make(ailment, True), ailment) == []


@pytest.mark.parametrize(
    "ailment",
    [pytest.param(one, id=one.label, marks=[pytest.mark.long] if one.long else []) for one in AILMENTS],
)
def test_what_is_found_fails(ailment: Ailment, make: Any) -> None:
    """The failure that the rule predicts is seen in the broken project, and gone in the cured one."""
    assert ailment.fails(make(ailment, False))
    assert not ailment.fails(make(ailment, True))


def test_the_table_of_the_rules_is_theirs() -> None:
    """What the documentation lists is what the code says."""
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run: python -m tests.doctor_table"


def test_each_rule_is_proven() -> None:
    """No rule without a broken project and its cured twin."""
    assert {one.id for one in RULES} - {one.id for one in AILMENTS} <= {"CP110"}
