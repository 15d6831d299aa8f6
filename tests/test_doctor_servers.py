"""Servers and workers that are well, or ill in ways that look like another illness: what the doctor says of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Queue

import celery_patterns as patterns
from celery_patterns.doctor import Examination, examine
from celery_patterns.doctor._address import _PORTS
from celery_patterns.stores import SQLStore

from .ailments._ailment import HEAD
from .projects import Project, doctor_in
from .servers import RabbitServer, RedisServer, _children, free_port
from .strangers import other_redis, web

WORK = "\n\n@app.task\ndef work(text: object = 'a') -> object:\n    mark('worked')\n    return text\n"


def look(app: Celery, **how: Any) -> Examination:
    found = examine(app, **{"source": [], "timeout": 2.0, "ignore": ["CP201", "CP119"], **how})
    assert not [what for what in found.unchecked if what.startswith("CP")]
    return found


def ids(found: Examination) -> list[str]:
    return [one.id for one in found.findings]


@pytest.fixture
def apps() -> Iterator[Any]:
    made: list[Celery] = []

    def make(**settings: Any) -> Celery:
        app = Celery(f"app-{uuid.uuid4().hex[:6]}", set_as_current=False)
        app.conf.update(settings)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


# URLs, as kombu and Celery read them


@pytest.mark.parametrize(
    "url",
    [
        "db+sqlite:///{}/results.db",
        "db+{}",
        "rpc://",
        "cache+memory://",
        "file://{}",
        "cache+memcached://127.0.0.1:1;127.0.0.2:1/",
    ],
)
def test_a_result_backend_that_celery_knows(url: str, apps: Any, postgres: str, tmp_path: Path) -> None:
    """None of them is called unknown; what is not looked at is said to be, and no file is made."""
    where = postgres.replace("postgresql://", "postgresql+psycopg://") if url == "db+{}" else str(tmp_path)
    found = look(apps(broker_url="memory://", result_backend=url.format(where)))
    assert ids(found) == []
    looked_at = url.startswith("db+")
    assert any("the result backend" in what for what in found.unchecked) != looked_at
    assert list(tmp_path.iterdir()) == []


class Dsn:
    """As pydantic's, which is no text."""

    def __str__(self) -> str:
        return "redis://:a-secret@127.0.0.1:6379/0"


@pytest.mark.parametrize("value", [b"redis://:a-secret@127.0.0.1:6379/0", Dsn(), 5, [None, Dsn()]])
@pytest.mark.parametrize("setting", ["broker_url", "broker_write_url", "broker_read_url", "result_backend"])
def test_a_url_that_is_no_text(setting: str, value: Any, apps: Any) -> None:
    """Celery ends with it somewhere else; here it is named, with its type, and nothing of it is shown."""
    found = look(apps(**{"broker_url": "memory://", setting: value}))
    assert [(one.id, one.where) for one in found.findings] == [("CP110", setting)]
    assert "and no text; str(…) makes one of it" in found.findings[0].what
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:47119;xyzKLM@127.0.0.1:1/0",
        "amqp://usr:52719;xyzKLM@127.0.0.1//",
        "redis://:abcQWJ;redis://xyzKLM@127.0.0.1:1/0",
        ["redis://127.0.0.1:1/0", "redis://:47119;xyzKLM@h:1/0"],
    ],
)
def test_a_password_with_a_semicolon(url: Any, apps: Any) -> None:
    """kombu takes what is behind it for another server: it is said so, and no piece is shown."""
    found = look(apps(broker_url=url))
    assert ids(found) == ["CP110"]
    assert not any(part in repr(found) for part in ("47119", "52719", "xyzKLM", "abcQWJ"))


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "localhost:6379/2",
        "10.0.0.1:6379",
        "/var/run/redis.sock",
        "./results.sqlite",
        "../results",
        ".redis",
    ],
)
def test_a_backend_without_a_scheme(apps: Any, url: str) -> None:
    """Celery takes it for the name of a module."""
    (found,) = look(apps(broker_url="memory://", result_backend=url)).findings
    assert (found.id, found.where) == ("CP110", "result_backend")
    assert "it has no scheme, redis:// for example" in found.what


@pytest.mark.parametrize("name", ["brocker", "brokr", "broker_", "broker"])
def test_a_broker_under_a_misspelt_name(name: str) -> None:
    """The finding of the connection says why there is none."""
    app = Celery("misspelt", set_as_current=False)
    app.conf.update({name: "redis://127.0.0.1:6379/0"})
    found = next(one for one in look(app).findings if one.id == "CP102")
    assert found.cure == f"{name} is nothing of Celery's: write broker= in Celery(…), or broker_url in the settings."
    app.close()


def test_eager_tasks_need_no_broker(apps: Any) -> None:
    """Nothing is sent: ``memory://`` is as good as any."""
    app = apps(broker_url="memory://", task_always_eager=True)
    assert "CP119" not in ids(examine(app, offline=True))
    app.conf.task_always_eager = False
    assert "CP119" in ids(examine(app, offline=True))


@pytest.mark.parametrize("url", ["redis+socket:///no/such.sock", "sqla+sqlite://", "filesystem://", "memory://"])
def test_a_broker_that_kombu_knows(url: str, apps: Any) -> None:
    """None of them is of an unknown kind."""
    assert "CP109" not in ids(look(apps(broker_url=url)))


def test_a_name_alone_is_a_backend_at_its_usual_place(apps: Any) -> None:
    """Celery takes ``redis`` for a Redis on this machine."""
    found = look(apps(broker_url="memory://", result_backend="redis"))
    assert all("localhost" in one.what for one in found.findings)


def test_settings_beside_the_url_count(apps: Any) -> None:
    """User, password and port may stand in settings of their own."""
    port = int(os.environ["TESTS_RABBIT_PORT"])
    right = {"broker_url": "amqp://127.0.0.1//", "broker_port": port, "broker_user": "guest"}
    assert ids(look(apps(**right, broker_password="guest"))) == []
    found = look(apps(**right, broker_password="wrong-secret"))
    assert ids(found) == ["CP104"]
    assert "the user 'guest'" in found.findings[0].what


SECRET = "Zecr3tPass"


@pytest.mark.parametrize("role", ["broker_url", "result_backend"])
@pytest.mark.parametrize(
    "url",
    [
        f"redis://:Zecr3t#{SECRET}@127.0.0.1:1/0",
        f"amqp://u:Zecr3t/{SECRET}@127.0.0.1:1//",
        f"u:{SECRET}@127.0.0.1:1/vh",
        f"redis:/:{SECRET}@127.0.0.1",
        f"rediss//:{SECRET}@127.0.0.1",
        f"redis://:Zecr3t;{SECRET}@127.0.0.1:1/0",
        f"amqp://u:{SECRET}@127.0.0.1:1//,amqp://u:{SECRET}@127.0.0.1:2//",
        f"redis://{SECRET}@127.0.0.1:1/0",
        f"redis://:{SECRET}[@127.0.0.1:1/0",
        f"redis://:{SECRET}@127.0.0.1:70000/0",
        f"redis://:p@{SECRET}/x@127.0.0.1:1/0",
        f"amqp://{SECRET}/ab@127.0.0.1:1//",
        f"amqp://{SECRET}@127.0.0.1:1//",
        f"amqp://{SECRET}:@127.0.0.1:1//",
        f"db+postgresql://u:p@{SECRET}/x@127.0.0.1:1/shop",
    ],
)
def test_a_url_that_is_none_gives_no_secret_away(
    role: str, url: str, apps: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is an error that says so; nothing of it stands in what is said, and no thread complains on its own."""
    settings = {"broker_url": "memory://", role: url}
    found = look(apps(**settings), timeout=1.0)
    assert found.errors
    said = repr(found) + "".join(map(str, found.findings)) + "".join(capfd.readouterr())
    assert "Zecr" not in said
    assert "Pass@" not in said


@pytest.mark.parametrize("role", ["broker_url", "result_backend"])
@pytest.mark.parametrize(
    "url",
    [
        "redis://:p@s/w#d@{}/0",
        "redis://p@s/w#d@{}/0",
        "redis://:ps?w@{}/0",
        "redis://:p/s?w@{}/0",
        "redis://:p#sw@{}/0",
    ],
)
def test_a_password_that_ends_the_url_early(url: str, role: str, apps: Any) -> None:
    """What stands behind it is a part of the password, too, and none of it is shown."""
    found = look(apps(**{"broker_url": "memory://", role: url.format("localhost:1")}))
    ((id_, what),) = [(one.id, str(one)) for one in found.findings]
    assert id_ == "CP110" and "%40 for @, %2F for /, %23 for #" in what
    assert not any(part in what for part in ("s/w", "ps?", "#s", "//ps", "://s"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://localhost:163799/0", "its port is above 65535"),
        (" redis://localhost", "a blank stands before it"),
        ("localhost:6379/0", "it has no scheme, redis:// or amqp:// for example"),
    ],
)
def test_a_url_that_says_what_is_wrong_with_it(url: str, said: str, apps: Any) -> None:
    """In the words of who typed it."""
    (found,) = look(apps(broker_url=url), ignore=["CP201"]).findings
    assert (found.id, said in found.what) == ("CP110", True)


@pytest.mark.parametrize(
    ("made", "cure"),
    [
        (lambda: Celery("shop", set_as_current=False), "Set app.conf.broker_url = 'redis://localhost:6379/0'"),
        (lambda: Celery("redis://localhost:6379/0", set_as_current=False), "A URL was given as the app's name"),
    ],
)
def test_a_broker_that_was_never_named(made: Any, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery looks for a RabbitMQ that nobody has asked for."""
    app = made()
    port = free_port()
    monkeypatch.setitem(_PORTS, "amqp", port)
    (found,) = [one for one in look(app).findings if one.where == "broker_url"]
    assert found.id == "CP102"
    assert found.what.startswith(
        "broker_url is not set, so that RabbitMQ is looked for on this machine: nothing listens"
    )
    assert found.cure.startswith(cure)
    app.close()


def test_a_password_whose_colon_was_forgotten(apps: Any) -> None:
    """Redis takes it for a user: it is not shown, and the mistake is named."""
    with other_redis(password=SECRET) as server:
        found = look(apps(broker_url=f"redis://{SECRET}@127.0.0.1:{server.port}/0"))
    assert ids(found) == ["CP104"]
    assert SECRET not in str(found.findings[0])
    assert "redis://:PASSWORD@host" in found.findings[0].cure


def test_a_socket_that_is_not_there(apps: Any, tmp_path: Path) -> None:
    """Nobody listens at its path; no certificate is missing."""
    app = apps(broker_url=f"redis+socket://{tmp_path}/no.sock", result_backend=f"redis+socket://{tmp_path}/no.sock")
    patterns.use_store(app, f"unix://{tmp_path}/no.sock")
    assert ids(look(app)) == ["CP102", "CP102", "CP102"]


def test_upper_case_is_a_scheme(apps: Any, database: str) -> None:
    """kombu reads a scheme in any case, and so does the doctor."""
    assert ids(look(apps(broker_url=database.replace("redis", "REDIS")))) == []


def test_the_line_to_change_keeps_what_stands_there(apps: Any) -> None:
    """It can be pasted: options of the transport are added, and none is lost."""
    app = apps(broker_url="redis://127.0.0.1", broker_transport_options={"global_keyprefix": "shop-"})

    @app.task(shared=False, name="slow", autoretry_for=(OSError,), max_retries=1, default_retry_delay=7200)
    def slow() -> None: ...

    (found,) = look(app, offline=True).findings
    assert (found.id, found.cure.partition(",")[0]) == (
        "CP303",
        'In broker_transport_options set "visibility_timeout": 14400',
    )
    app.conf.broker_transport_options = {}
    (found,) = look(app, offline=True).findings
    assert found.cure.startswith('Set app.conf.broker_transport_options = {"visibility_timeout": 14400}. ')


# Servers that take over from each other


def test_one_of_two_brokers_is_away(apps: Any, database: str) -> None:
    """A warning: the other one is used, and workers are asked through it."""
    app = apps(broker_url=f"redis://127.0.0.1:{free_port()}/0;{database}")
    found = look(app, ignore=[])
    assert [(one.id, one.where) for one in found.findings] == [
        ("CP201", "workers"),
        ("CP116", "broker_url (1 of 2)"),
    ]
    both = look(apps(broker_url=f"redis://127.0.0.1:{free_port()}/0;redis://127.0.0.1:{free_port()}/0"))
    assert ids(both) == ["CP102", "CP102"]


# Accounts and roles


def test_an_account_that_may_do_what_tasks_need(apps: Any) -> None:
    """It may not look at the server: that is no error, and is said."""
    with other_redis(password="a-secret") as server:
        server.client().acl_setuser(
            "app",
            enabled=True,
            passwords="+pw",
            keys="*",
            channels="*",
            categories=["+@all"],
            commands=["-info", "-config"],
        )
        found = look(apps(broker_url=f"redis://app:pw@127.0.0.1:{server.port}/0"))
    assert ids(found) == []
    assert any("INFO is not allowed" in what for what in found.unchecked)


@pytest.mark.parametrize("role", ["broker", "store"])
def test_a_redis_whose_port_is_a_web_servers(role: str, apps: Any) -> None:
    """A web server at the port of a Redis is named as a server of another kind."""
    with web() as port:
        app = apps(broker_url=f"redis://127.0.0.1:{port}/0" if role == "broker" else "memory://")
        if role == "store":
            patterns.use_store(app, f"redis://127.0.0.1:{port}/0")
        assert ids(look(app)) == ["CP106"]


def test_a_redis_where_postgresql_is_expected(apps: Any) -> None:
    """A Redis at the port of a store in SQL is named as what it is."""
    app = apps(broker_url="memory://")
    patterns.use_store(app, f"postgresql://tests@127.0.0.1:{os.environ['TESTS_REDIS_PORT']}/shop")
    found = look(app, timeout=4.0)
    assert ids(found) == ["CP106"]
    assert "Redis answers, and PostgreSQL was expected" in found.findings[0].what


@pytest.mark.parametrize(
    ("where", "id_"),
    [("nobody@{}/postgres", "CP104"), ("tests@{}/password_x", "CP105"), ("tests@{}/postgres?sslmode=require", "CP107")],
)
def test_what_postgresql_refuses(where: str, id_: str, apps: Any) -> None:
    """It says so in a text alone, in which a name may be anything."""
    app = apps(broker_url="memory://")
    patterns.use_store(app, f"postgresql://{where.format('127.0.0.1:' + os.environ['TESTS_POSTGRES_PORT'])}")
    assert ids(look(app)) == [id_]


def test_a_file_is_not_made_by_looking(apps: Any, tmp_path: Path) -> None:
    """A store in SQLite whose file is not there has no table."""
    app = apps(broker_url="memory://")
    patterns.use_store(app, SQLStore(f"sqlite:///{tmp_path}/keys.db"))
    assert ids(look(app)) == ["CP114"]
    assert list(tmp_path.iterdir()) == []


# Workers


@pytest.fixture
def two(database: str, rabbit: str, tmp_path: Path) -> Iterator[Any]:
    """Two projects of one broker."""
    made: list[Project] = []

    def make(name: str, *, broker: str = database, more: str = "") -> Project:
        values = {"broker": broker, "backend": database, "queue": f"{name}-{uuid.uuid4().hex[:6]}"}
        # One control exchange: each answers the other's questions.
        source = HEAD.replace('control_exchange="c-$queue", ', "") + more + WORK
        made.append(Project(tmp_path / name, source, values))
        return made[-1]

    yield make
    for project in made:
        project.close()


def test_workers_of_another_app_are_none_of_ours(two: Any) -> None:
    """They answer on the same broker, with other queues, tasks and settings."""
    other = two("other", more="app.conf.update(task_acks_late=True, timezone='Asia/Tokyo')\n")
    other.worker()
    ours = two("ours")
    assert ids(look(ours.app, ignore=[])) == ["CP201"]
    ours.worker(name="ours")
    assert ids(look(ours.app, ignore=[])) == []


def test_a_solo_worker_that_is_busy(two: Any, rabbit: str) -> None:
    """It cannot answer, and RabbitMQ knows that it listens: it is not called missing."""
    project = two("busy", broker=rabbit, more="app.conf.control_exchange = 'c-$queue'\nimport time\n")
    source = (project.folder / f"{project.name}.py").read_text().replace("return text", "time.sleep(12)")
    (project.folder / f"{project.name}.py").write_text(source)
    project.worker("-P", "solo")
    project.send("work", ignore_result=True)
    assert project.marked("worked")
    found = look(project.app, ignore=[])
    assert ids(found) == []
    assert any("a solo pool that runs a task cannot" in what for what in found.unchecked)


def test_a_worker_that_cannot_tell_its_tasks(two: Any) -> None:
    """It says what went wrong, which is not taken for the name of the only task that it knows."""
    mute = "class Mute:\n    def __str__(self):\n        raise ValueError\n\n\n"
    project = two("hoarse", more=f"{mute}app.Task.plan = Mute()\n")
    project.worker()
    found = look(project.app, ignore=[])
    assert ids(found) == []
    assert "the worker w@localhost: its answer to `inspect registered` is an error" in found.unchecked


def test_workers_that_are_not_to_answer(two: Any) -> None:
    """The setting says it."""
    project = two("mute", more="app.conf.worker_enable_remote_control = False\n")
    found = look(project.app, ignore=[])
    assert ids(found) == []
    assert "the workers: worker_enable_remote_control is off, so they do not answer" in found.unchecked


def test_a_task_that_two_apps_share(two: Any) -> None:
    """A worker that knows it, and listens to the other app's queues, is none whose settings matter."""
    other = two("other", more="app.conf.update(task_acks_late=True, timezone='Asia/Tokyo')\n")
    other.worker()
    ours = two("ours", more="")
    shared = other.task("work").run
    ours.app.task(shared=False, name=other.task("work").name)(shared)
    ours.worker(name="ours")
    assert ids(look(ours.app, ignore=["CP204"])) == []


# The command


def test_a_module_that_ends_the_program(tmp_path: Path) -> None:
    """It is no success: a pipeline would be green, and nothing was looked at."""
    (tmp_path / "ends.py").write_text("import sys\n\nsys.exit(0)\n")
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n\napp = Celery(broker='memory://', include=['ends'])\n"
    )
    told = doctor_in(tmp_path)
    assert (told.returncode, told.stderr) == (2, "Error: the app's modules cannot be imported: SystemExit: 0\n")


def test_a_configuration_that_raises(tmp_path: Path) -> None:
    """One line, in which no password stands."""
    (tmp_path / "celeryconfig.py").write_text(f"raise RuntimeError('bad url redis://:{SECRET}@localhost/0')\n")
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n\napp = Celery()\napp.config_from_object('celeryconfig')\n"
    )
    told = doctor_in(tmp_path)
    assert (told.returncode, told.stderr) == (
        2,
        "Error: the app's modules cannot be imported: RuntimeError: bad url redis://**@localhost/0\n",
    )


def test_what_is_left_on_redis_is_celerys_own(apps: Any, database: str) -> None:
    """As by ``celery inspect ping``."""
    look(apps(broker_url=database))
    left = list(redis.Redis.from_url(database).scan_iter())
    assert [key for key in left if not key.startswith(b"_kombu.binding")] == []


def _slow() -> None: ...


@pytest.mark.parametrize(("told", "found"), [(7_200_000, []), (5_000, ["CP304"]), (None, ["CP304"])])
def test_how_long_a_queue_waits_is_its_own(told: int | None, found: list[str], apps: Any) -> None:
    """A queue that says for how long it waits for an acknowledgement is believed."""
    app = apps(broker_url="amqp://127.0.0.1//")
    app.conf.task_queues = [Queue("celery", queue_arguments={} if told is None else {"x-consumer-timeout": told})]
    app.task(name="slow", shared=False, acks_late=True, reject_on_worker_lost=True, time_limit=3600)(_slow)
    assert ids(look(app, offline=True, ignore=["CP305"])) == found


# Servers that go while they are looked at


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("kind", [RedisServer, pytest.param(RabbitServer, marks=pytest.mark.long)])
def test_a_server_that_goes_in_the_middle(kind: Any, number: signal.Signals, tmp_path: Path) -> None:
    """Whenever it goes, the doctor comes to an end in time, and tells nothing that is not so."""
    server = kind()
    with contextlib.closing(server):
        server.start()
        for wait in (0.0, 0.02, 0.1, 0.5):
            url = server.url() if kind is RedisServer else server.url
            project = Project(tmp_path / str(wait), HEAD + WORK, {"broker": url, "backend": "rpc://", "queue": "q"})
            pids = [server.process.pid, *_children(server.process.pid)]
            gone = threading.Timer(wait, lambda: [os.kill(pid, number) for pid in pids])  # noqa: B023 - joined below
            assert project.app
            began = time.monotonic()
            gone.start()
            found = project.examine(timeout=2)
            assert time.monotonic() - began < 8, wait
            gone.join()
            project.close()
            assert {one.id for one in found.findings} <= {"CP102", "CP103", "CP106", "CP110", "CP201"}, found
            if number == signal.SIGSTOP:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            else:
                server.stop()
                server.start()
