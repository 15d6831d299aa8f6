"""Servers for the whole run, and a corner of them for each test."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from .harness import Floor, floor
from .servers import PostgresServer, RabbitServer, RedisServer, Server, new_database
from .test_store_guards import REDIS, WITHOUT, leave_out

RABBIT = "TESTS_RABBIT_PORT"
POSTGRES = "TESTS_POSTGRES_PORT"
# Where a change is judged, the same examples each time; on a developer's machine new ones.
settings.register_profile("ci", derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

_servers: list[Server] = []
_databases = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    """Start the servers once, before xdist's own processes, which find them in the environment."""
    if WITHOUT in os.environ:
        leave_out()
    if hasattr(config, "workerinput") or REDIS in os.environ or config.option.collectonly:
        return
    for server, name in ((RedisServer(), REDIS), (RabbitServer(), RABBIT), (PostgresServer(), POSTGRES)):
        _servers.append(server)
        server.start()
        os.environ[name] = str(server.port)


def pytest_unconfigure(config: pytest.Config) -> None:
    for server in _servers:
        server.close()
    if _servers:
        _servers.clear()
        os.environ.pop(REDIS, None)
        os.environ.pop(RABBIT, None)
        os.environ.pop(POSTGRES, None)


@pytest.fixture
def database() -> str:
    """The URL of an empty Redis database that no other test uses: messages of a queue share keys with the others'."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return f"redis://127.0.0.1:{os.environ[REDIS]}/{int(worker) * 1000 + next(_databases) + 1}"


@pytest.fixture
def postgres() -> str:
    """The URL of an empty PostgreSQL database."""
    return new_database(int(os.environ[POSTGRES]))


@pytest.fixture
def rabbit() -> str:
    return f"amqp://guest:guest@127.0.0.1:{os.environ[RABBIT]}//"


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    """Each test that takes it runs on both brokers."""
    return str(request.getfixturevalue("database" if request.param == "redis" else "rabbit"))


@pytest.fixture
def environment(broker: str, database: str) -> dict[str, str]:
    """What the app under test is made from; override it to change the broker or leave the store out."""
    return {"FLOOR_BROKER": broker, "FLOOR_BACKEND": database, "FLOOR_STORE": database, "FLOOR_TRACES": database}


@pytest.fixture
def shop(environment: dict[str, str], tmp_path: Path) -> Iterator[Floor]:
    with floor(environment, tmp_path) as made:
        yield made


@pytest.fixture
def corner(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> Iterator[Floor]:
    """A corner of the broker that the test's parameter ``kind`` names, one of ``BROKERS``."""
    database = request.getfixturevalue("database")
    environment = {
        "FLOOR_BROKER": database if kind == "redis" else request.getfixturevalue("rabbit"),
        **{f"FLOOR_{name}": database for name in ("BACKEND", "STORE", "TRACES")},
        **({"FLOOR_QUEUE_TYPE": "quorum"} if kind == "quorum" else {}),
    }
    with floor(environment, tmp_path) as made:
        yield made


@pytest.fixture(params=[RedisServer, RabbitServer])
def server(request: Any) -> Iterator[Any]:
    """A broker of the test's own, which it may stop, and whose counts are of this test alone."""
    made = request.param()
    made.start()
    yield made
    made.close()


@pytest.fixture
def own(server: Any, database: str, tmp_path: Path) -> Iterator[Floor]:
    """A corner on that broker; store, results and traces are elsewhere, and stay."""
    broker = server.url if isinstance(server, RabbitServer) else server.url()
    settings = {"FLOOR_BROKER": broker, "FLOOR_BACKEND": database, "FLOOR_STORE": database, "FLOOR_TRACES": database}
    with floor(settings, tmp_path) as made:
        yield made


@pytest.fixture
def queue() -> str:
    return f"r-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def dead(queue: str) -> str:
    return f"{queue}.dead"
