"""``celery -A proj patterns letters …``, as a user types it."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CeleryOption
from celery.bin.celery import celery as celerys_command
from click.testing import CliRunner, Result

import celery_patterns as patterns
from celery_patterns import dead_letter, dead_letters
from celery_patterns.stores import MemoryStore

from .harness import ROOT
from .here import run_here
from .test_replay import declare, messages, written_by_hand

EVIL = "\x1b[2J\x1b]0;owned\x07 \u202eback [bold]markup[/bold]"


@pytest.fixture
def queue() -> str:
    return f"c-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def dead(queue: str) -> str:
    return f"{queue}.dead"


@pytest.fixture
def app(broker: str, queue: str) -> Any:
    made = Celery("commands", broker=broker, set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, MemoryStore())
    patterns.use_strict_json(made)
    made.conf.task_default_queue = queue
    declare(made, queue)

    @made.task(shared=False, name="shop.charge")
    @dead_letter()
    def charge(order: str, amount: int = 1) -> None:
        raise ValueError(f"cannot charge {order}: {EVIL}")

    yield made
    made.close()


def run(app: Celery | None, *arguments: str, columns: int = 80, stdin: str | None = None) -> Result:
    """The command in this process, as if the app had been given with ``-A``."""
    return CliRunner().invoke(
        celerys_command,
        ["patterns", "letters", *arguments],
        default_map={} if app is None else {"app": app},
        env={"COLUMNS": str(columns)},
        input=stdin,
        prog_name="celery",
    )


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def three(app: Celery) -> list[str]:
    """Three letters' ids."""
    for number in range(3):
        run_here(app.tasks["shop.charge"], f"o-{number}", headers={"argsrepr": f"('o-{number}',)", "kwargsrepr": "{}"})
    return [letter.id for letter in dead_letters(app, f"{app.conf.task_default_queue}.dead")]


def test_the_command_is_found_under_celerys_own() -> None:
    """Through the entry point of the installed package; each command explains itself without an app."""
    told = subprocess.run(
        [sys.executable, "-m", "celery", "patterns", "letters", "--help"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in ("stats", "list", "show", "replay", "purge", "export", "import", "Exit codes"):
        assert name in told
    for name in ("stats", "list", "show", "replay", "purge", "export", "import"):
        result = run(None, name, "--help")
        assert (result.exit_code, "Usage: celery patterns letters" in result.output) == (0, True)


def test_without_an_app_it_says_which_is_missing() -> None:
    """Celery would hand over one that has no broker."""
    result = run(None, "stats")
    assert result.exit_code == 2
    assert "which app? expected celery -A proj patterns letters stats" in result.stderr


def test_the_queue_is_the_one_that_the_tasks_name(app: Celery, dead: str, three: list[str]) -> None:
    """When there is one; else all of them are told, and one is to be chosen."""
    assert f"3 letters in {dead}." in run(app, "list").stdout

    @app.task(shared=False, name="other")
    @dead_letter("another.dead")
    def other() -> None: ...

    result = run(app, "list")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"the app's tasks name another.dead, {dead}; expected -Q with one" in result.stderr
    assert f"3 letters in {dead}." in run(app, "list", "-Q", dead).stdout


def test_stats_group_the_letters(app: Celery, three: list[str]) -> None:
    """A table for people, an object a line for machines."""
    told = run(app, "stats").stdout
    for expected in ("3", "shop.charge", "ValueError", "tests/test_cli.py, in charge", three[0][:8], "3 letters in"):
        assert expected in told
    (cause,) = lines(run(app, "stats", "--json"))
    assert (cause["task"], cause["count"], cause["example"]) == ("shop.charge", 3, three[0])
    assert lines(run(app, "stats", "--json", "--task", "nobody's")) == []
    assert "0 letters in" in run(app, "stats", "--task", "nobody's").stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_screens_fit_and_do_no_harm(app: Celery, three: list[str], columns: int) -> None:
    """No line is wider than the terminal, and nothing in a letter is obeyed by it, not even in a task's name."""
    written_by_hand(app, f"{app.conf.task_default_queue}.dead", task=f"bad{EVIL}", message=EVIL, traceback=EVIL)
    for command in (["stats"], ["list"], ["show", three[0], "--body"]):
        told = run(app, *command, columns=columns).stdout
        assert not set("\x1b\x07\u202e") & set(told), command
        if command != ["show", three[0], "--body"]:  # which a traceback's own lines may be
            assert max(map(len, told.splitlines())) <= columns, command
    assert "\\x1b[2J" in run(app, "show", three[0], columns=columns).stdout
    assert "[bold]markup" in run(app, "show", three[0], columns=columns).stdout
    listed = run(app, "list", columns=columns).stdout.splitlines()
    assert [line.split()[0] for line in listed[2:5]] == [one[:8] for one in three]
    refused = run(app, "replay", "--set", f"{EVIL}=1", "--yes")
    assert (refused.exit_code, "\x1b" in refused.output) == (2, False)


def test_a_letter_is_shown_by_the_first_digits_of_its_id(app: Celery, dead: str, three: list[str]) -> None:
    """All but its arguments, which are shown when they are asked for."""
    shown = run(app, "show", three[1][:8]).stdout
    assert three[1] in shown
    assert '["o-1"]' not in shown
    assert '["o-1"]' in run(app, "show", three[1][:8], "--body").stdout
    (letter,) = lines(run(app, "show", three[1], "--json"))
    assert (letter["id"], "body" in letter) == (three[1], False)
    (whole,) = lines(run(app, "show", three[1], "--json", "--body"))
    assert json.loads(whole["body"])[0] == ["o-1"]
    for number in range(2):
        written_by_hand(app, dead, id=f"abc{number}")
    several = run(app, "show", "abc")
    assert (several.exit_code, "2 letters begin with abc, for example abc0 and abc1" in several.stderr) == (2, True)
    nothing = run(app, "show", "zzz")
    assert (nothing.exit_code, "no letter zzz stands in" in nothing.stderr) == (1, True)


def test_filters_are_those_of_python(app: Celery, dead: str, three: list[str]) -> None:
    """Each one, with moments written as people write them."""
    written_by_hand(app, dead, id="old", died_at=1_750_000_000.0, root_id="r", task="t", reason="crashed")
    for options, expected in (
        (["--task", "t"], ["old"]),
        (["--reason", "crashed"], ["old"]),
        (["--error", "ValueError", "--since", "2h"], three),
        (["--until", "30d"], ["old"]),
        (["--since", "2025-06-15T00:00", "--until", "2025-06-16"], ["old"]),
        (["--root-id", "r"], ["old"]),
        (["--id", "ol"], ["old"]),
        (["--id", "no such"], []),
        (["--limit", "2"], three[:2]),
    ):
        found = lines(run(app, "list", "--json", *options))
        assert [letter["id"] for letter in found] == expected, options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--since", "yesterday"], "expected a time ago as 2h or 30d, or a moment as 2026-11-25T09:00"),
        (["list", "--since", "1h", "--until", "2h"], "is later than until"),
        (["list", "--reason", "tired"], "'tired' is not one of"),
        (["list", "--limit", "0"], "--limit"),
        (["replay"], "nobody is there to be asked; expected --yes"),
        (["purge"], "nobody is there to be asked; expected --yes"),
        (["replay", "--yes", "--set", "order"], "expected name=value, for example order_id=o-1"),
        (["replay", "--yes", "--set", "nosuch=1"], "has no argument 'nosuch'; its arguments are: order, amount"),
        (["replay", "--yes", "--rate", "0"], "--rate"),
        (["replay", "--yes", "--canary", "1"], "a shared result backend"),
        (["replay", "--yes", "--canary-timeout", "soon"], "expected a number and s, m, h, d or w"),
        (["replay", "--yes", "--to", "no-such-queue"], "no-such-queue"),
        (["purge", "--yes", "--older-than", "-1d"], "--older-than"),
        (["export", "-o", "/nowhere/at/all"], "cannot be written"),
        (["import", __file__], "is no letter"),
        (["import", "no-such-file"], "does not exist"),
    ],
)
def test_a_wrong_use_is_one_line_and_does_nothing(
    app: Celery, queue: str, dead: str, three: list[str], arguments: list[str], said: str
) -> None:
    """Exit code 2, no traceback, all letters where they were."""
    result = run(app, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert [letter.id for letter in dead_letters(app, dead)] == three
    assert messages(app, queue) == []


def test_a_replay_counts_what_it_did(app: Celery, queue: str, dead: str, three: list[str]) -> None:
    """0 when all were sent, 1 when one could not be, which is named; a dry run sends nothing."""
    assert "Would replay 3 letters of" in run(app, "replay", "--dry-run").stdout
    assert messages(app, queue) == []
    bad = written_by_hand(app, dead, queue="nowhere", exchange="nowhere", routing_key="k")
    result = run(app, "replay", "--yes")
    assert (result.exit_code, "Replayed 3 letters of" in result.stdout) == (1, True)
    assert f"1 letter could not be replayed and stay:\n  {bad.id[:8]}  " in result.stderr.replace("stays", "stay")
    assert len(messages(app, queue)) == 3
    result = run(app, "replay", "--yes", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["sent"], report["failed"], report["failures"][0]["id"], report["stopped"]) == (0, 1, bad.id, None)


def test_new_values_are_json_or_text(app: Celery, queue: str, three: list[str]) -> None:
    """A number is a number, a text needs no quotes, and an equals sign may stand in it."""
    assert run(app, "replay", "-y", "--limit", "1", "--set", "amount=5", "--set", "order=a=b").exit_code == 0
    assert run(app, "replay", "-y", "--limit", "1", "--set", 'order="5"').exit_code == 0
    first, second = messages(app, queue)
    assert (first.payload[:2], second.payload[:2]) == ([["a=b"], {"amount": 5}], [["5"], {}])


def test_a_canary_that_dies_is_an_exit_code_of_its_own(
    app: Celery, broker: str, three: list[str], database: str
) -> None:
    """3, with the reason on stderr."""
    app.conf.result_backend = database
    app.__dict__.pop("backend", None)
    app._local = type(app._local)()
    app._backend_cache = None
    result = run(app, "replay", "-y", "--canary", "1", "--canary-timeout", "1s")
    assert (result.exit_code, "Replayed 1 letter of" in result.stdout) == (3, True)
    assert "Stopped: 1 of 1 canaries came to no end within 0:00:01" in result.stderr


def test_a_purge_keeps_a_copy_unless_told_not_to(
    app: Celery, dead: str, three: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """In a file that it names, from which the letters can be put back."""
    monkeypatch.chdir(tmp_path)
    result = run(app, "purge", "--yes", "--limit", "2")
    (file,) = tmp_path.iterdir()
    assert result.stdout == f"Deleted 2 letters of {dead}. They are in {file.name}.\n"
    assert [letter.id for letter in dead_letters(app, dead)] == three[2:]
    assert run(app, "import", file.name).stdout == f"Put 2 letters back into {dead}.\n"
    assert lines(run(app, "import", file.name, "--json")) == [{"imported": 0}]
    assert run(app, "purge", "--yes", "--no-export").stdout == f"Deleted 3 letters of {dead}.\n"
    assert len(list(tmp_path.iterdir())) == 1
    assert lines(run(app, "purge", "--yes", "--json", "-o", "kept", "--older-than", "30d")) == [
        {"purged": 0, "file": "kept"}
    ]
    assert (tmp_path / "kept").read_text() == ""


def test_an_export_is_for_a_pipe_or_a_file(app: Celery, dead: str, three: list[str], tmp_path: Path) -> None:
    """Stdout holds nothing but the lines; a file is new."""
    file = tmp_path / "letters.jsonl"
    assert [line["letter"]["id"] for line in lines(run(app, "export"))] == three
    assert run(app, "export", "-o", str(file)).stdout == f"Wrote 3 letters of {dead} to {file}.\n"
    again = run(app, "export", "-o", str(file))
    assert (again.exit_code, "is there already; expected the name of a new file" in again.stderr) == (2, True)


def test_a_broker_that_is_away_is_one_line_without_a_password() -> None:
    """Exit code 1, and the address with stars in it."""
    for url in ("redis://:hidden@127.0.0.1:1/0", "amqp://me:hidden@127.0.0.1:1//"):
        away = Celery(broker=url, set_as_current=False)
        result = run(away, "list", "-Q", "q")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "Error: the broker at " in result.stderr
        assert ("hidden" in result.output, "Traceback" in result.output) == (False, False)
        assert len(result.stderr.splitlines()) == 1


def test_tables_need_rich_and_json_does_not(app: Celery, three: list[str], monkeypatch: Any) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "rich", None)
    result = run(app, "list")
    assert (result.exit_code, result.stdout) == (1, "")
    assert 'tables need rich: pip install "celery-patterns[cli]"; --json works without' in result.stderr
    assert len(lines(run(app, "list", "--json"))) == 3
    assert run(app, "replay", "--yes").exit_code == 0


def test_options_that_an_app_adds_to_every_command_are_taken(app: Celery, three: list[str]) -> None:
    """Celery hands its preload options to a plugin's group."""
    app.user_options["preload"].add(CeleryOption(("--tenant",), default="none"))
    group = celerys_command.commands["patterns"]
    before = list(group.params)
    try:
        assert "3 letters in" in run(app, "list").stdout
    finally:
        group.params[:] = before
        for command in celerys_command.commands.values():
            command.params[:] = [one for one in command.params if one.name != "tenant"]


def test_loading_the_command_costs_no_more_than_the_package() -> None:
    """Celery loads it at every call: it brings four small modules of ours."""
    code = (
        "import sys, celery.bin.base, celery_patterns; package = set(sys.modules); import celery_patterns.cli;"
        "print(*sorted(set(sys.modules) - package))"
    )
    more = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    ours = [f"celery_patterns.{name}" for name in ("_options", "_screens", "_terminal", "cli")]
    assert more == [*ours, "unicodedata"]
    check = "import sys, celery_patterns.cli; print('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=True, capture_output=True).stdout == b"False\n"


def on_a_terminal(command: list[str], environment: dict[str, str], answer: str = "") -> tuple[int, str]:
    """Run it with a terminal of 80 columns, and give what stood there."""
    main, worker = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=worker,
        stdout=worker,
        stderr=worker,
        cwd=ROOT,
        env={**os.environ, **environment, "COLUMNS": "80", "TERM": "xterm"},
    )
    os.close(worker)
    told, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([main], [], [], 0.2)[0]:
            continue
        try:
            chunk = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        told += chunk
        if answer and b"?" in told:
            os.write(main, answer.encode())
            answer = ""
    os.close(main)
    return process.wait(30), told.decode(errors="replace")


def test_it_asks_before_it_acts(app: Celery, broker: str, database: str, tmp_path: Path) -> None:
    """On a terminal: with the number of letters; a no changes nothing and is not taken for done."""
    name = uuid.uuid4().hex[:10]
    environment = {
        "FLOOR_BROKER": broker,
        "FLOOR_BACKEND": database,
        "FLOOR_STORE": database,
        "FLOOR_TRACES": database,
        "FLOOR_NAMESPACE": name,
    }
    for _ in range(2):
        written_by_hand(app, f"q-{name}.dead")
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.entry", "patterns", "letters"]
    for action, question in (("replay", "Replay 2 letters of"), ("purge", "Delete 2 letters of")):
        code, told = on_a_terminal([*command, action, "-Q", f"q-{name}.dead"], environment, "n\n")
        assert code == 1
        assert question in told
        assert "nothing was done" in told
    assert len(dead_letters(app, f"q-{name}.dead")) == 2
    code, told = on_a_terminal([*command, "replay", "-Q", f"q-{name}.dead"], environment, "y\n")
    assert (code, f"Replayed 2 letters of q-{name}.dead." in told) == (0, True)
