"""The doctor as it is used: on the command line, in a test of the user's, in Django; against servers that are not well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.celery import celery as celerys_command
from click.testing import CliRunner, Result

import celery_patterns as patterns
from celery_patterns.doctor import RULES, Examination, examine
from celery_patterns.exceptions import ConfigurationError

from .projects import doctor_in, patterns_in
from .servers import free_port
from .strangers import babble, hole, mute, other_redis, web

SECRET = "hush/&@:#%-é"
QUOTED = "hush%2F%26%40%3A%23%25-%C3%A9"


@pytest.fixture
def app() -> Iterator[Celery]:
    """One that needs no server, and has one mistake of each severity."""
    made = Celery("ill", broker="redis://127.0.0.1:6379/0", backend="cache+memory://", set_as_current=False)
    made.conf.update(result_expires=None, task_ignore_results=True)

    @made.task(shared=False, name="ill.never")
    async def never() -> None: ...

    yield made
    made.close()


def run(app: Celery | None, *arguments: str, columns: int = 80) -> Result:
    """The command in this process, as if the app had been given with ``-A``."""
    return CliRunner().invoke(
        celerys_command,
        ["patterns", "doctor", *arguments],
        default_map={} if app is None else {"app": app},
        env={"COLUMNS": str(columns)},
        prog_name="celery",
    )


def ids(examined: Examination) -> list[str]:
    return [one.id for one in examined.findings]


# What is said, and how loud


def test_the_worst_comes_first(app: Celery) -> None:
    """Errors, warnings, hints; a last line counts them."""
    told = run(app, "--offline")
    assert told.exit_code == 1
    firsts = [line for line in told.stdout.splitlines() if line.startswith("CP")]
    assert [line.split()[:2] for line in firsts] == [["CP405", "error"], ["CP408", "warning"], ["CP412", "hint"]]
    assert told.stdout.splitlines()[-1] == "1 error, 1 warning, 1 hint."


def test_a_finding_says_all_of_it(app: Celery) -> None:
    """What is wrong, what will happen, what to change, and where others have met it."""
    text = " ".join(run(app, "--offline").stdout.split())
    assert "ill.never it is an async def. The task is SUCCESS, and its body never ran" in text
    assert "Cure: Make it a def, and call asyncio.run() in its body." in text
    assert "See: https://github.com/celery/" in text
    assert all(len(line) <= 80 or "https://" in line for line in run(app, "--offline").stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--fail-on", "never"), 0),
        (("--ignore", "CP405"), 0),
        (("--ignore", "CP405", "--fail-on", "warning"), 1),
        (("--ignore", "CP405", "--ignore", "CP408", "--fail-on", "warning"), 0),
        (("--ignore", "CP405:ill.never"), 0),
        (("--ignore", "CP405:another"), 1),
        (("--fail-on", "hint"), 1),
        (("--ignore", "CP999"), 2),
        (("--ignore", "nonsense"), 2),
        (("--profile", "staging"), 2),
        (("--timeout", "0"), 2),
        (("--timeout", "inf"), 2),
        (("--timeout", "nan"), 2),
        (("--ignore", "cp405"), 0),
        (("no/such/file.py",), 2),
    ],
)
def test_the_exit_code_is_for_a_pipeline(app: Celery, words: tuple[str, ...], code: int) -> None:
    """1 where something is as bad as --fail-on says, 2 where nothing was looked at."""
    told = run(app, "--offline", *words)
    assert told.exit_code == code, told.output
    assert "Traceback" not in told.output


def test_a_project_ignores_with_a_reason(app: Celery) -> None:
    """The setting patterns_doctor_ignore holds ids, or places, and why; each is shown as ignored."""
    app.conf.patterns_doctor_ignore = {"CP405": "it is awaited by a base of ours", "CP408:task_ignore_results": "old"}
    told = run(app, "--offline")
    assert told.exit_code == 0
    assert "CP405 at ill.never is ignored: it is awaited by a base of ours" in told.stdout
    assert "CP408 at task_ignore_results is ignored: old" in told.stdout
    assert told.stdout.splitlines()[-1] == "1 hint."


def test_json_is_one_object(app: Celery) -> None:
    """With all that the text says; what could not be looked at stands in it."""
    app.conf.patterns_doctor_ignore = {"CP412": "few results"}
    told = run(app, "--offline", "--json")
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    assert [one["id"] for one in found["findings"]] == ["CP405", "CP408"]
    assert set(found["findings"][0]) == {"id", "severity", "where", "what", "happens", "cure", "upstream"}
    assert found["ignored"][0]["reason"] == "few results"
    assert found["unchecked"] == [
        "the servers: only settings were read",
        "the workers: only settings were read",
        "the source: only settings were read",
    ]


def test_what_a_module_prints_is_not_in_the_json(tmp_path: Path) -> None:
    """Tasks are imported as the app is looked at; what they print goes to the other stream."""
    source = (
        'from celery import Celery\n\napp = Celery("proj", broker="redis://127.0.0.1:6379/0", include=["chatty"])\n'
    )
    (tmp_path / "proj.py").write_text(source)
    (tmp_path / "chatty.py").write_text('print("I am imported")\n')
    told = doctor_in(tmp_path, "--offline", "--json")
    assert json.loads(told.stdout)["findings"] == []
    assert "I am imported" in told.stderr


#: A setting, and what is said of it.
WRONG_KINDS = {
    "beat_schedule, a comma": ({"beat_schedule": {"a": {"task": "t", "schedule": 3, "args": (1)}}}, "its args is 1"),
    "beat_schedule, an entry": ({"beat_schedule": {"a": None}}, "it is None"),
    "beat_schedule, a list": ({"beat_schedule": [1]}, "it is a list"),
    "beat_schedule, options": (
        {"beat_schedule": {"a": {"task": "t", "schedule": 3, "options": "q"}}},
        "options is a text",
    ),
    "beat_schedule, a word": ({"beat_schedule": {"a": {"task": "t", "schedul": 3}}}, "it has 'schedul'"),
    "beat_schedule, no schedule": ({"beat_schedule": {"a": {"task": "t"}}}, "its schedule is None"),
    "timezone": ({"timezone": "Europe/Berln"}, "'Europe/Berln' is the name of no zone"),
    "visibility_timeout": ({"broker_transport_options": {"visibility_timeout": "2h"}}, "it is a text"),
    "transport options": ({"broker_transport_options": None}, "it is None"),
    "result_expires": ({"result_expires": "1 day"}, "it is a text"),
    "a list of names": ({"task_queues": ["a", "b"]}, "a text stands in it"),
    "a name": ({"task_queues": "math"}, "it is a text"),
    "always_eager": ({"task_always_eager": "False"}, "it is a text, which is true whatever it says"),
    "prefetch": ({"worker_prefetch_multiplier": "4"}, "it is a text"),
}


@pytest.mark.parametrize("name", WRONG_KINDS)
@pytest.mark.parametrize("offline", [True, False])
def test_a_setting_of_a_wrong_kind(name: str, offline: bool) -> None:
    """Celery itself may end with it; the doctor names it, and goes on with what it can read."""
    settings, said = WRONG_KINDS[name]
    app = Celery("ill", broker="redis://127.0.0.1:1/0", backend="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.update(settings)
    found = [one for one in examine(app, offline=offline, timeout=1).findings if one.id == "CP419"]
    assert said in found[0].what, found
    assert {one.where.partition("[")[0] for one in found} == {*settings}
    app.close()


#: What is written, and what was meant.
MISSPELT = {
    "BROKER_POOL_LIMT": "broker_pool_limit",
    "CELERY_TASK_ALWAYS_EAGER": "task_always_eager, or give config_from_object() namespace='CELERY'",
    "CELERY_BROKER_URL": "broker_url, or give",
    "visibility_timeout": 'broker_transport_options["visibility_timeout"]',
    "concurrency": "worker_concurrency",
    "bakend": "backend=, as an argument of Celery(…)",
    "acks_late": "task_acks_late",
    "prefetch_multiplier": "worker_prefetch_multiplier",
}


def test_a_rate_that_is_none() -> None:
    """A worker ends with it, which is what is told, and not that none runs."""
    app = Celery("ill", broker="redis://127.0.0.1:1/0", set_as_current=False)

    @app.task(name="t", shared=False, rate_limit="10/minute")
    def work() -> None: ...

    found = [one for one in examine(app, offline=True).findings if one.id == "CP419"]
    assert [(one.where, one.what) for one in found] == [("t", "its rate_limit is none that Celery can read")]
    app.close()


@pytest.mark.parametrize("name", MISSPELT)
def test_a_name_that_celery_does_not_know(name: str) -> None:
    """What was meant is named as Celery of today has it: old names beside new ones end each start."""
    app = Celery("ill", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.update({name: 1, "task_track_started": True})
    (found,) = examine(app, offline=True).findings
    assert (found.id, found.where, f"Write {MISSPELT[name]}" in found.cure) == ("CP408", name, True), found
    app.close()


def test_an_option_that_no_task_has(app: Celery) -> None:
    """It does nothing, as a misspelt setting does."""
    app.task(name="ill.more", shared=False, ignore_resul=True, acks_lat=True, colour="red")(nothing)
    app.conf.patterns_doctor_ignore = ["CP405", "CP412", "CP408:task_ignore_results"]
    cures = [one.cure for one in examine(app, offline=True).findings]
    assert [cure.split()[1] for cure in cures] == ["acks_late,", "ignore_result,"]


def nothing() -> None: ...


def test_an_app_without_tasks_is_told() -> None:
    """It may be meant so; then it stands there, and is no finding."""
    app = Celery("empty", broker="redis://127.0.0.1:6379/0", set_as_current=False)
    examined = examine(app, offline=True)
    assert examined.findings == ()
    assert any(what.startswith("the tasks: the app has none of its own") for what in examined.unchecked)
    app.close()


def test_one_file_is_a_source(tmp_path: Path, app: Celery) -> None:
    """A path alone is taken for a list of one."""
    (tmp_path / "one.py").write_text("x = (\n")
    assert f"{tmp_path / 'one.py'}:1, which cannot be read as Python" in str(
        examine(app, offline=True, source=tmp_path / "one.py").unchecked
    )
    assert examine(app, offline=True, source=str(tmp_path)).unchecked


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_each_rule_explains_itself(rule: Any) -> None:
    """Without an app: what it looks at, what will happen, and where others have met it, in sentences."""
    told = run(None, "--explain", rule.id.lower())
    assert told.exit_code == 0
    assert told.stdout.startswith(f"{rule.id} {rule.severity}: {rule.title}\n")
    assert rule.link in told.stdout
    assert rule.link.startswith("https://")
    assert rule.seen.endswith(".")
    assert rule.happens.endswith(".")
    assert not rule.title.endswith(".")


def test_an_unknown_rule_is_told() -> None:
    """An id that is none is wrong use, and the range of ids is named."""
    told = run(None, "--explain", "CP1")
    assert told.exit_code == 2
    assert f"there is no rule CP1; they are CP101 to {RULES[-1].id}" in " ".join(told.output.split())


def test_ids_are_in_order_and_each_its_own() -> None:
    """So that they can be found in the table."""
    assert [rule.id for rule in RULES] == sorted({rule.id for rule in RULES})


def test_without_an_app_it_says_which_is_missing() -> None:
    """Without -A the command says how to name one."""
    told = run(None)
    assert told.exit_code == 2
    assert "which app? expected celery -A proj patterns doctor" in told.stderr


@pytest.mark.parametrize("command", ["doctor", "letters stats", "letters list", "claims list"])
def test_an_app_that_cannot_be_imported_is_told(tmp_path: Path, command: str) -> None:
    """A module that ``include`` names and is not there is what a beginner meets first: one line, no traceback."""
    (tmp_path / "proj.py").write_text(
        'from celery import Celery\n\napp = Celery("proj", broker="redis://127.0.0.1:6379/0", include=["proj_taks"])\n'
    )
    told = patterns_in(tmp_path, *command.split())
    assert told.returncode == 2
    assert told.stderr.startswith(
        "Error: the app's modules cannot be imported: ModuleNotFoundError: No module named 'proj_taks'"
    )
    assert len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["doctor", "letters stats"])
@pytest.mark.parametrize(
    ("base", "what"),
    [("OrderTask", "OrderTask, a class that is no task"), ("OrderTask()", "a OrderTask"), ("'OrderTask'", "a str")],
)
def test_a_base_that_is_no_task_is_told(tmp_path: Path, command: str, base: str, what: str) -> None:
    """Celery says that the task has no attribute ``bind``, or that metaclasses conflict; here it is what to write."""
    (tmp_path / "proj.py").write_text(
        'from celery import Celery\n\napp = Celery("proj", broker="redis://127.0.0.1:6379/0")\n\n\nclass OrderTask:\n    patterns = ()\n\n\n'
        f"@app.task(base={base})\ndef refund(order): ...\n"
    )
    told = patterns_in(tmp_path, *command.split())
    said = f"refund has as its base= {what}; expected a class that inherits from PatternTask, or from Celery's Task"
    assert (told.returncode, told.stderr) == (2, f"Error: {said}\n")


@pytest.mark.parametrize("command", ["doctor", "letters stats"])
def test_a_static_method_is_no_task(tmp_path: Path, command: str) -> None:
    """Celery says that a 'method-wrapper' has no attribute ``__module__``; here it is what to write."""
    (tmp_path / "proj.py").write_text(
        'from celery import Celery\n\napp = Celery("proj", broker="redis://127.0.0.1:6379/0")\n\n\nclass Shop:\n'
        "    @app.task\n    @staticmethod\n    def refund(order): ...\n"
    )
    told = patterns_in(tmp_path, *command.split())
    said = "refund is a staticmethod; expected a function that stands in no class"
    assert (told.returncode, told.stderr) == (2, f"Error: {said}\n")


def test_urls_that_are_given_by_their_places_are_told(tmp_path: Path) -> None:
    """Celery takes the second argument for its loader, and says that there is no module ``redis://localhost``."""
    (tmp_path / "proj.py").write_text(
        'from celery import Celery\n\napp = Celery("proj", "redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/1")\n'
    )
    told = patterns_in(tmp_path, "doctor")
    said = 'Celery(…) was given a URL by its place; expected Celery("shop", broker=…, backend=…)'
    assert (told.returncode, told.stderr) == (2, f"Error: {said}\n")


@pytest.mark.parametrize("command", ["doctor", "letters stats"])
def test_a_file_that_is_called_as_celerys_package(tmp_path: Path, command: str) -> None:
    """``-A celery`` is the package itself, whose app has no broker and no tasks; the file beside it is never read."""

    def said() -> tuple[int, str]:
        words = ["-c", "from celery.__main__ import main; main()", "-A", "celery", "patterns", *command.split()]
        told = subprocess.run(
            [sys.executable, "-P", *words] if sys.version_info >= (3, 11) else [sys.executable, "-I", *words],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return told.returncode, told.stderr

    expected = f"expected celery -A proj patterns {command}\n"
    assert said() == (2, f"Error: -A celery is Celery's own package, not your app; {expected}")
    (tmp_path / "celery.py").write_text("raise AssertionError\n")
    why = "; celery.py has that name, too: call it proj.py"
    assert said() == (2, f"Error: -A celery is Celery's own package, not your app{why}; {expected}")
    (tmp_path / "__init__.py").touch()
    name = tmp_path.name
    why = f"; celery.py here is {name}.celery: go one folder up, and say -A {name}"
    assert said() == (2, f"Error: -A celery is Celery's own package, not your app{why}; {expected}")


def test_what_modules_print_is_no_part_of_an_answer(tmp_path: Path, database: str) -> None:
    """A program that reads ``--json`` finds nothing else on stdout."""
    (tmp_path / "proj.py").write_text(
        f'from celery import Celery\n\napp = Celery("proj", broker={database!r}, include=["noisy"])\n'
    )
    (tmp_path / "noisy.py").write_text('print("loaded")\n')
    for command in ("letters stats --json", "letters list --json"):
        told = patterns_in(tmp_path, *command.split())
        assert (told.returncode, "loaded" in told.stdout, "loaded" in told.stderr) == (0, False, True), told.stderr


def test_nothing_wrong_is_said(database: str) -> None:
    """And the exit code is 0."""
    app = Celery("well", broker=database, backend=database, set_as_current=False)
    told = run(app, "--ignore", "CP201")
    assert (told.exit_code, told.stdout.splitlines()[-1]) == (0, "Nothing is wrong, as far as was looked.")


def test_a_line_may_say_that_it_is_meant(tmp_path: Path, app: Celery) -> None:
    """``# noqa: CP502`` at its end excuses one line from one rule."""
    file = tmp_path / "views.py"
    lines = (
        "from celery import shared_task",
        "@shared_task",
        "def pay(n): ...",
        "def view():",
        "    with transaction.atomic():",
        "        pay.delay(1)  # noqa: CP502",
        "        pay.delay(2)",
    )
    file.write_text("\n".join(lines))
    found = examine(app, offline=True, source=[file]).findings
    assert [one.where.rpartition(":")[2] for one in found if one.id == "CP502"] == ["7"]


# In Python


def test_it_is_one_line_in_a_test_of_the_users(app: Celery) -> None:
    """An assert that shows each error when it fails."""
    with pytest.raises(AssertionError, match=r"CP405 error: ill\.never"):
        assert not examine(app, offline=True).errors, "\n".join(map(str, examine(app, offline=True).errors))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"profile": "staging"}, 'expected profile to be "development" or "production"'),
        ({"timeout": 0}, "expected timeout to be a number of seconds, above 0 and up to 600"),
        ({"timeout": True}, "expected timeout to be a number of seconds, above 0 and up to 600"),
        ({"ignore": "CP405"}, "expected ignore to hold ids of rules"),
        ({"ignore": ["CP999"]}, "expected ignore to name rules, for example CP203; got 'CP999'"),
        ({"source": ["nowhere.py"]}, "there is no nowhere.py"),
    ],
)
def test_a_wrong_argument_is_told(app: Celery, how: dict[str, Any], said: str) -> None:
    """Each wrong argument of examine() is an error that says what was expected."""
    with pytest.raises(ConfigurationError, match=said):
        examine(app, offline=True, **how)


def test_only_a_celery_app_is_examined() -> None:
    """What is no Celery app is refused, by name of the function."""
    with pytest.raises(ConfigurationError, match=r"examine\(\) takes your Celery app"):
        examine("proj")  # type: ignore[arg-type]


def test_five_hundred_tasks_are_read_in_no_time() -> None:
    """Offline, in under 100 ms: it can stand in front of each test run and each deploy."""
    app = Celery("large", broker="redis://localhost", backend="redis://localhost", set_as_current=False)
    patterns.use_patterns(app)
    patterns.use_store(app, "redis://localhost")
    patterns.use_strict_json(app)
    for number in range(500):

        @app.task(shared=False, name=f"large.task_{number}", time_limit=60)
        @patterns.retry(on=ConnectionError)
        @patterns.dead_letter()
        def work(order: str, amount: float = 1.0) -> None: ...

    app.conf.task_routes = {"large.task_1*": {"queue": "ones"}, "large.*": {"queue": "others"}}
    app.finalize()
    assert ids(examine(app, offline=True)) == []

    def timed() -> float:
        began = time.process_time()
        examine(app, offline=True)
        return time.process_time() - began

    assert min(timed() for _ in range(5)) < 0.1  # the others are busy meanwhile


def test_django_checks_it(app: Celery) -> None:
    """As a system check: its levels, the ids with our name before them, the cure as the hint."""
    from django.core import checks

    from celery_patterns.doctor import system_check

    found = system_check(app)(app_configs=None)
    assert [(one.id, one.level) for one in found] == [
        ("celery_patterns.CP405", checks.ERROR),
        ("celery_patterns.CP408", checks.WARNING),
        ("celery_patterns.CP412", checks.INFO),
    ]
    assert found[0].msg.startswith("ill.never: it is an async def. The task is SUCCESS")
    assert found[0].hint == "Make it a def, and call asyncio.run() in its body."


DJANGO = {
    "manage.py": """\
import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_.settings")
from django.core.management import execute_from_command_line

execute_from_command_line(sys.argv)
""",
    "site_/__init__.py": "from .celery import app\n",
    "site_/settings.py": """\
SECRET_KEY = "tests"
INSTALLED_APPS = ["shop.apps.ShopConfig"]
CELERY_BROKER_URL = "redis://127.0.0.1:6379/0"
CELERY_TASK_TIME_LIMT = 30
CELERY_PATTERNS_DOCTOR_IGNORE = {"CP412": "few"}
CELERY_RESULT_BACKEND = "cache+memory://"
CELERY_RESULT_EXPIRES = None
""",
    "site_/celery.py": """\
import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_.settings")
app = Celery("site_")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
""",
    "shop/__init__.py": "",
    "shop/apps.py": """\
from django.apps import AppConfig
from django.core.checks import register


class ShopConfig(AppConfig):
    name = "shop"

    def ready(self):
        from celery_patterns.doctor import system_check
        from site_.celery import app

        register(system_check(app))
""",
    "shop/tasks.py": "from celery import shared_task\n\n\n@shared_task\nasync def never(): ...\n",
}


def test_a_project_of_djangos_checks_itself(tmp_path: Path) -> None:
    """`manage.py check` shows each finding once, with the names that Django's settings have; and the command says the same."""
    for name, text in DJANGO.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for command in (["manage.py", "check"], ["-m", "celery", "-A", "site_", "patterns", "doctor", "--offline"]):
        told = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60
        )
        said = told.stdout + told.stderr
        assert told.returncode == 1, said
        assert said.count("CP405") == 1 + ("doctor" in command)  # and once more where it says how to explain it
        assert "Write CELERY_TASK_TIME_LIMIT, if that was meant." in said
        assert "RecursionError" not in said


def test_tasks_that_nobody_has_imported_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``include`` names is imported, as a worker does: a test of the user's imports the app alone."""
    name = f"late_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text(
        f'from celery import Celery\n\napp = Celery("{name}", broker="redis://127.0.0.1:6379/0", include=["{name}_tasks"], set_as_current=False)\n'
    )
    (tmp_path / f"{name}_tasks.py").write_text(
        f"from {name} import app\n\n\n@app.task(shared=False)\nasync def never(): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    app = __import__(name).app
    assert ids(examine(app, offline=True)) == ["CP405"]


# Servers that are not well


def _broker_at(port: int, scheme: str) -> Celery:
    return Celery("dead", broker=f"{scheme}://127.0.0.1:{port}//", set_as_current=False)


@pytest.mark.parametrize("scheme", ["redis", "amqp", "rediss", "amqps"])
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("closed", {"CP102"}),
        ("mute", {"CP103"}),
        ("hole", {"CP103"}),
        ("web", {"CP106", "CP107"}),
        ("ssh", {"CP106", "CP107"}),
        ("mail", {"CP106", "CP107"}),
        ("garbage", {"CP106", "CP107", "CP108"}),
    ],
)
def test_a_broker_that_is_none(scheme: str, what: str, expected: set[str]) -> None:
    """Dead, silent, or speaking something else: the right cause, in under ten seconds."""
    with ExitStack() as stack:
        port = {
            "closed": free_port,
            "mute": lambda: stack.enter_context(mute()),
            "hole": lambda: stack.enter_context(hole()),
            "web": lambda: stack.enter_context(web()),
            "ssh": lambda: stack.enter_context(babble(b"SSH-2.0-OpenSSH_9.2\r\n")),
            "mail": lambda: stack.enter_context(babble(b"220 mail.example ESMTP\r\n")),
            "garbage": lambda: stack.enter_context(babble(os.urandom(64))),
        }[what]()
        app = _broker_at(port, scheme)
        began = time.monotonic()
        found = examine(app, source=[], timeout=2.0)
        assert time.monotonic() - began < 10
    assert set(ids(found)) <= expected
    assert len(found.findings) == 1
    assert found.unchecked[-1] == "the workers: they are asked through the broker, which cannot be used"


def test_all_of_them_dead_at_once(tmp_path: Path) -> None:
    """Broker, result backend and store are asked at the same time, not one after the other."""
    with mute() as silent, hole() as hidden:
        app = Celery(
            "dead",
            broker=f"redis://127.0.0.1:{silent}/0",
            backend=f"redis://127.0.0.1:{hidden}/0",
            set_as_current=False,
        )
        patterns.use_store(app, f"postgresql://127.0.0.1:{silent}/shop")
        began = time.monotonic()
        found = examine(app, source=[])
        assert time.monotonic() - began < 10
    assert [(one.id, one.where) for one in found.findings] == [
        ("CP103", "broker_url"),
        ("CP103", "result_backend"),
        ("CP103", "store"),
    ]


@pytest.mark.parametrize("url", ["redis://{}@127.0.0.1:{}/0", "amqp://shop:{}@127.0.0.1:{}//"])
@pytest.mark.parametrize("what", ["closed", "mute", "web", "redis", "rabbit", "locked"])
def test_no_password_is_shown(url: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with a server: not in the text, not in JSON, not in what Python shows of it."""
    with ExitStack() as stack:
        port: Any = {
            "closed": free_port,
            "mute": lambda: stack.enter_context(mute()),
            "web": lambda: stack.enter_context(web()),
            "redis": lambda: os.environ["TESTS_REDIS_PORT"],
            "rabbit": lambda: os.environ["TESTS_RABBIT_PORT"],
            "locked": lambda: stack.enter_context(other_redis(password="another")).port,
        }[what]()
        login = QUOTED if url.startswith("amqp") else f":{QUOTED}"
        written = url.format(login, port)
        app = Celery("secret", broker=written, backend=f"redis://:{QUOTED}@127.0.0.1:{port}/0", set_as_current=False)
        patterns.use_store(app, f"redis://:{QUOTED}@127.0.0.1:{port}/0")
        said = run(app, "--timeout", "1").output + run(app, "--timeout", "1", "--json").output
        said += repr(examine(app, source=[], timeout=1))
    assert "CP" in said
    for secret in ("hush", QUOTED, SECRET):
        assert secret not in said


def test_it_changes_nothing(database: str, rabbit: str) -> None:
    """No queue is made, and no key is left: it may look at production."""
    import redis

    app = Celery("look", broker=database, backend=database, set_as_current=False)
    patterns.use_store(app, database)

    @app.task(shared=False, name="look.work")
    def work() -> None: ...

    examine(app, source=[])
    # What a question to the workers leaves is Celery's own, as with `celery inspect ping`.
    assert [key for key in redis.Redis.from_url(database).scan_iter() if not key.startswith(b"_kombu.binding")] == []
    app = Celery("look", broker=rabbit, set_as_current=False)
    app.conf.task_default_queue = "a-queue-that-nobody-made"
    app.task(shared=False, name="look.work")(work.run)
    examine(app, source=[])
    with app.connection_for_write() as connection, pytest.raises(connection.channel_errors):
        connection.default_channel.queue_declare(queue="a-queue-that-nobody-made", passive=True)
