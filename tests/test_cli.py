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
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CeleryOption
from celery.bin.celery import celery as celerys_command
from click.testing import CliRunner, Result
from kombu import Queue

import celery_patterns as patterns
from celery_patterns import dead_letter, dead_letters
from celery_patterns._letter import REASONS
from celery_patterns.cli._letters import _letter, _message
from celery_patterns.cli._targets import Target
from celery_patterns.exceptions import LetterNotFound
from celery_patterns.letters import _replay, dead_queues
from celery_patterns.stores import MemoryStore

from .harness import ROOT, Floor
from .here import run_here
from .test_replay import declare, messages, written_by_hand

EVIL = "\x1b[2J\x1b]0;owned\x07 \u202eback [bold]markup[/bold]"


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
        for word in ("--help", "-h"):
            result = run(None, name, word)
            assert (result.exit_code, "Usage: celery patterns letters" in result.output) == (0, True)
    assert all(reason in " ".join(run(None, "list", "-h").output.split()) for reason in REASONS)


def test_without_an_app_it_says_which_is_missing() -> None:
    """Celery would hand over one that has no broker."""
    result = run(None, "stats")
    assert result.exit_code == 2
    assert "which app? expected celery -A proj patterns letters stats" in result.stderr


def test_the_queue_is_the_one_that_the_tasks_name(app: Celery, dead: str, three: list[str]) -> None:
    """The only one that holds letters; of several, which hold how many is told, and one is to be chosen."""
    other = f"z-{dead}"

    @app.task(shared=False, name="other")
    @dead_letter(other)
    def bury_elsewhere() -> None: ...

    assert f"3 letters in {dead}." in run(app, "list").stdout
    written_by_hand(app, other)
    for command in ("list", "replay", "purge", "export"):
        result = run(app, command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"letters stand in {dead} (3 letters), {other} (1 letter). Pass -Q with one" in result.stderr
    assert f"3 letters in {dead}." in run(app, "list", "-Q", dead).stdout


def test_stats_show_every_queue_that_holds_letters(app: Celery, queue: str, dead: str, three: list[str]) -> None:
    """Also those of messages that name no task, in any queue that the app names or that a task without patterns goes to."""
    routed = f"routed-{queue}"

    app.conf.task_routes = {"plain": {"queue": routed}}

    @app.task(shared=False, name="plain")
    def plain() -> None: ...

    @app.task(shared=False, name="other")
    @dead_letter(f"z-{dead}")
    def other() -> None: ...

    assert dead_queues(app) == sorted([dead, f"{routed}.dead", f"z-{dead}"])
    written_by_hand(app, f"{routed}.dead", task="nobody.knows", reason="unknown_task")
    told = run(app, "stats").stdout
    assert told.index(f"3 letters in {dead}.") < told.index(f"1 letter in {routed}.dead.")
    assert f"z-{dead}" not in told
    causes = lines(run(app, "stats", "--json"))
    assert [(cause["queue"], cause["count"]) for cause in causes] == [(dead, 3), (f"{routed}.dead", 1)]
    (one,) = lines(run(app, "stats", "--json", "-Q", f"{routed}.dead"))
    assert one["queue"] == f"{routed}.dead"


def test_a_queue_that_is_not_there_is_no_success(app: Celery, queue: str, dead: str, three: list[str]) -> None:
    """2, with the app's own; one of the app's own may be empty, and one of somebody else's may be asked for."""
    for command in (["stats"], ["list", "--json"], ["show", "x"], ["replay", "-y"], ["purge", "-y"], ["export"]):
        result = run(app, *command, "-Q", f"nope-{dead}")
        assert (result.exit_code, result.stdout) == (2, "")
        expected = f"there is no queue nope-{dead} on the broker; the app's dead-letter queues are {dead}"
        assert expected in result.stderr
    written_by_hand(app, f"their-{dead}")
    assert f"1 letter in their-{dead}." in run(app, "list", "-Q", f"their-{dead}").stdout
    assert run(app, "purge", "-y", "--no-export", "-Q", dead).exit_code == 0
    empty = run(app, "list", "-Q", dead)
    assert (empty.exit_code, empty.stdout) == (0, f"0 letters in {dead}{unseen(app)}.\n")


def test_no_letters_anywhere(app: Celery, dead: str) -> None:
    """It says in which queues it looked, and on RabbitMQ that somebody else may hold letters."""

    @app.task(shared=False, name="other")
    @dead_letter(f"z-{dead}")
    def other() -> None: ...

    nothing = run(app, "stats")
    assert (nothing.exit_code, nothing.stdout) == (0, f"0 letters in {dead}, z-{dead}{unseen(app)}.\n")
    assert lines(run(app, "stats", "--json")) == []


def unseen(app: Celery) -> str:
    rabbit = str(app.conf.broker_url).startswith("amqp")
    return "; those that somebody is reading or replaying are not seen on RabbitMQ" if rabbit else ""


def test_a_letter_that_is_not_there_is_no_success(app: Celery, queue: str, dead: str, three: list[str]) -> None:
    """1, and nothing is done to the others. Of a cause none may be left, which is no failure."""
    for command in (
        ["list"],
        ["stats"],
        ["replay", "-y"],
        ["replay", "--dry-run"],
        ["purge", "-y"],
        ["export", "-o", "kept"],
    ):
        result = run(app, *command, "--id", "zz")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "no letter zz stands in" in result.stderr
        result = run(app, *command, "--cause", "zz")
        none = f'0 of 3 letters in {dead} match. See the causes with "stats".\n'
        assert (result.exit_code, result.stdout) == (0, none)
    assert dead_letters(app, dead).count() == 3
    assert messages(app, queue) == []


def test_the_last_line_says_of_how_many(app: Celery, dead: str, three: list[str]) -> None:
    """Under a filter it counts what stands there, too; where nothing matches, it says what there is."""
    written_by_hand(app, dead, task="shop.bill")
    for command in ("list", "stats"):
        charges, bills = ("--task", "shop.charge"), ("--task", "shop.bill")
        for options, expected in (
            (charges, f"3 letters of 4 messages in {dead} match."),
            (bills, f"1 letter of 4 messages in {dead} matches."),
            ((*charges, "--limit", "2"), f"The oldest 2 letters that match, of 4 messages in {dead}."),
            ((*bills, "--limit", "1"), f"The oldest 1 letter that matches, of 4 messages in {dead}."),
            ((*charges, "--limit", "9"), f"3 letters of 4 messages in {dead} match."),
            (("--limit", "2"), f"The oldest 2 letters of 4 messages in {dead}."),
            (("--limit", "4"), f"4 letters in {dead}."),
            (("--limit", "9"), f"4 letters in {dead}."),
            ((), f"4 letters in {dead}."),
        ):
            assert f"\n{expected}\n" in run(app, command, *options).stdout
    none = f"0 of 4 letters in {dead} match."
    there = " There are letters of shop.charge (3), shop.bill (1)."
    for command in (["list"], ["stats"], ["replay"], ["replay", "--dry-run"], ["purge"], ["export", "-o", "none"]):
        result = run(app, *command, "--task", "bill")
        assert (result.exit_code, result.stdout) == (0, f"{none}{there}\n"), command
    errors = " There are letters of the error builtins.ValueError (4)."
    assert run(app, "list", "--error", "KeyError").stdout == f"{none}{errors}\n"
    reasons = " There are letters of the reason failed (4)."
    assert run(app, "stats", "--reason", "crashed").stdout == f"{none}{reasons}\n"
    written_by_hand(app, dead, id=dead_letters(app, dead).stats()[0].example)  # a second copy of one death
    assert f"\nThe oldest 2 letters of 5 messages in {dead}.\n" in run(app, "list", "--limit", "2").stdout
    assert not Path("none").exists()


def test_a_cause_is_chosen_as_stats_show_it(app: Celery, queue: str, dead: str, three: list[str]) -> None:
    """By the first characters of its fingerprint, in every command."""
    written_by_hand(app, dead, task="shop.bill")
    first, second = lines(run(app, "stats", "--json"))
    assert first["fingerprint"][:8] in run(app, "stats").stdout
    short = second["fingerprint"][:5]
    assert [letter["task"] for letter in lines(run(app, "list", "--json", "--cause", short))] == ["shop.bill"]
    assert len(lines(run(app, "export", "--cause", short))) == 1
    assert "Deleted 1 letter of" in run(app, "purge", "-y", "--no-export", "--cause", short).stdout
    assert "Replayed 3 letters of" in run(app, "replay", "-y", "--cause", first["fingerprint"]).stdout


def test_stats_group_the_letters(app: Celery, three: list[str]) -> None:
    """A table for people, an object a line for machines."""
    told = run(app, "stats").stdout
    for expected in ("3", "shop.charge", "ValueError", "tests/test_cli.py, in charge", three[0][:8], "3 letters in"):
        assert expected in told
    (cause,) = lines(run(app, "stats", "--json"))
    assert (cause["task"], cause["count"], cause["example"]) == ("shop.charge", 3, three[0])
    assert lines(run(app, "stats", "--json", "--task", "nobody's")) == []


@pytest.mark.parametrize("columns", [60, 80, 120])
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
    assert [line[:8] for line in listed if line[:8] in {one[:8] for one in three}] == [one[:8] for one in three]
    refused = run(app, "replay", "--set", f"{EVIL}=1", "--yes")
    assert (refused.exit_code, "\x1b" in refused.output) == (2, False)


def test_a_narrow_table_breaks_names_at_their_dots(app: Celery, dead: str) -> None:
    """And texts between words; what is too long for that is folded, and not cut."""
    name = "shop.payments.tasks.charge_the_customer_once_and_for_all"
    written_by_hand(app, dead, task=name, message="the payment service did not answer within thirty seconds")
    for command in ("stats", "list"):
        told = [line.strip() for line in run(app, command, columns=60).stdout.splitlines()]
        assert any(line.endswith("shop.payments.tasks.") or "shop.payments.tasks. " in line for line in told), told
    words = " ".join(run(app, "list", columns=60).stdout.split())
    assert "the payment service did not answer within thirty seconds" in words


def test_a_moment_as_it_is_shown_includes_its_second(app: Celery, dead: str) -> None:
    """What a screen says of a first and a last death chooses both."""
    for at in (1_750_000_100.3, 1_750_000_101.7, 1_750_000_102.0):
        written_by_hand(app, dead, died_at=at)
    since, until = (datetime.fromtimestamp(at).astimezone().isoformat() for at in (1_750_000_100, 1_750_000_101))
    assert len(lines(run(app, "list", "--json", "--since", since, "--until", until))) == 2


def test_messages_that_are_no_letters_are_counted(app: Celery, queue: str) -> None:
    """A queue of tasks that was named by mistake is not called empty."""
    for _ in range(4):
        app.tasks["shop.charge"].delay("o-1")
    for command in (["list"], ["stats"], ["replay", "-y"], ["purge", "-y"]):
        result = run(app, *command, "-Q", queue)
        assert result.stdout == f"0 letters in {queue}, where 4 other messages stand.\n", command
    assert len(messages(app, queue)) == 4


def test_a_letter_that_has_just_gone(app: Celery, dead: str) -> None:
    """Between two looks somebody else may have taken it: an error of one line."""
    gone = Target(app, dead_letters(app, dead).where(id="x"), frozenset())
    for shown in (_letter, _message):
        with pytest.raises(LetterNotFound, match=f"the letter has just gone from {dead}"):
            shown(gone)


def test_moments_are_shown_with_their_zone(app: Celery, dead: str) -> None:
    """All of them, those of earlier attempts and of the message's properties among them."""
    history = [{"attempt": 1, "at": 1_750_000_000.5, "error": "builtins.KeyError"}]
    letter = written_by_hand(
        app, dead, died_at=1_750_000_100.0, history=history, properties={"timestamp": 1_750_000_001}
    )
    shown = [run(app, *command, columns=120).stdout for command in (["show", letter.id], ["list"], ["stats"])]
    for seconds, pages in ((1_750_000_100, shown), (1_750_000_000, shown[:1]), (1_750_000_001, shown[:1])):
        moment = datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
        assert all(moment in page for page in pages), seconds
        assert str(seconds) not in shown[0]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_stream_of_any_encoding_is_written_to(shop: Floor, encoding: str) -> None:
    """What it has no character for is shown as Python writes it."""
    letter = written_by_hand(shop.app, shop.dead, message="Ü → 💥", task="grüße", traceback="Ü → 💥", error="ä.Ö")
    for command in (["stats"], ["list"], ["show", letter.id[:8], "--body"], ["list", "--task", "ü"]):
        told = typed_there(shop, *command, PYTHONIOENCODING=encoding)
        assert (told.returncode, told.stderr) == (0, b"")
        told.stdout.decode(encoding)
    refused = typed_there(shop, "show", "ü→", PYTHONIOENCODING=encoding)
    assert (refused.returncode, b"Traceback" in refused.stderr) == (1, False)


def typed_there(shop: Floor, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.apps.entry", "patterns", "letters", *arguments],
        check=False,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **shop.environment, **environment},
    )


def test_a_letter_is_shown_by_the_first_characters_of_its_id(app: Celery, dead: str, three: list[str]) -> None:
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
        (["--limit", "2"], three[:2]),
    ):
        found = lines(run(app, "list", "--json", *options))
        assert [letter["id"] for letter in found] == expected, options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--since", "yesterday"], "expected a time ago as 2h or 30d, or a moment as 2026-11-25T09:00"),
        (["list", "--since", "1h", "--until", "2h"], "since, 1:00:00 ago, is later than until, 2:00:00 ago; expected"),
        (["list", "--reason", "tired"], "'tired' is not one of"),
        (["list", "--id", "a", "--id", "b"], "it is given 2 times; expected it once"),
        (["stats", "-Q", "a", "-Q", "b"], "it is given 2 times; expected it once"),
        (["purge", "--yes", "--older-than", "1d", "--older-than", "2d"], "it is given 2 times; expected it once"),
        (["replay", "--yes", "--to", "a", "--to", "b"], "it is given 2 times; expected it once"),
        (["list", "--limit", "0"], "--limit"),
        (["replay"], "nobody is there to be asked. Pass --yes"),
        (["purge"], "nobody is there to be asked. Pass --yes"),
        (["replay", "--yes", "--set", "order"], "expected name=value, for example order_id=o-1"),
        (["replay", "--yes", "--set", "order=False"], "False is Python's; JSON says false"),
        (["replay", "--yes", "--set", "order=[1, 2"], "begins as JSON and is none"),
        (["replay", "--yes", "--set", "order=1", "--set", "order=2"], "order is given twice"),
        (["replay", "--yes", "--set", "nosuch=1"], "has no argument 'nosuch'; its arguments are: order, amount"),
        (["replay", "--yes", "--rate", "0"], "--rate"),
        (["replay", "--yes", "--canary", "1"], "a shared result backend"),
        (["replay", "--yes", "--canary-timeout", "soon"], "expected a number and s, m, h, d or w"),
        (["replay", "--yes", "--to", "no-such-queue"], "no-such-queue"),
        (["purge", "--yes", "--older-than", "-1d"], "--older-than"),
        (["show", ""], "expected the first characters of a letter's id, got ''"),
        (["purge", "--yes", "--no-export", "-o", "kept"], "-o and --no-export contradict each other"),
        (["replay", "--yes", "--cause", ""], "expected the first characters of a cause, got ''"),
        (["export", "-o", "/nowhere/at/all"], "cannot be written"),
        (["import", __file__], "is no letter; expected a file that export has written; nothing was imported"),
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
    """0 when all were sent, 1 when one could not be, which is named."""
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


def test_a_report_says_where_to_and_what_was_corrected(app: Celery, queue: str, three: list[str]) -> None:
    """The report of a replay has what a dry run has foretold."""
    options = ("--set", "amount=5", "--limit", "2", "--json")
    foretold = lines(run(app, "replay", "--dry-run", *options))[0]
    report = lines(run(app, "replay", "-y", *options))[0]
    assert report["queues"] == foretold["queues"] == {queue: 2}
    assert report["corrected"] == foretold["corrected"]
    assert list(report["corrected"].values()) == [2]


def test_a_dry_run_shows_what_would_be_sent(app: Celery, queue: str, dead: str, three: list[str]) -> None:
    """Of which causes, to which queues, and which types a correction changes; no value, and nothing is sent."""
    written_by_hand(app, dead, queue="elsewhere", task="shop.bill")
    result = run(app, "replay", "--dry-run", "--task", "shop.charge", "--set", "amount=7777", "--set", 'order="8888"')
    assert result.exit_code == 0
    for expected in (
        "ValueError",
        f"Would replay 3 letters of {dead}:\n  3 to {queue}\n",
        "  amount: not given -> int (3 letters)\n",
        "  order: str -> str (3 letters)\n",
    ):
        assert expected in result.stdout
    assert ("7777" in result.output, "8888" in result.output, "o-1" in result.output) == (False, False, False)
    (report,) = lines(run(app, "replay", "--dry-run", "--json"))
    assert (report["dry_run"], report["sent"], report["queues"]) == (True, 4, {queue: 3, "elsewhere": 1})
    assert [(cause["task"], cause["count"]) for cause in report["causes"]] == [("shop.charge", 3), ("shop.bill", 1)]
    assert messages(app, queue) == []
    assert dead_letters(app, dead).count() == 4


@pytest.fixture
def typed(app: Celery, queue: str) -> Any:
    """A task whose arguments are of the types that JSON lacks, and a letter of it."""

    @app.task(shared=False, name="typed")
    @dead_letter()
    def typed(amount: Any, **others: Any) -> None:
        raise ValueError

    run_here(
        typed,
        Decimal("1.50"),
        moment=datetime(2026, 1, 1, 9, tzinfo=timezone.utc),
        day=date(2026, 1, 1),
        hour=time_of_day(9),
        key=uuid.UUID(int=5),
        data=b"old",
        raw=b"\xff",
        plain=5,
        price=9.5,
        nothing=None,
        texts=["a"],
    )
    return typed


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        ("amount=9.90", Decimal("9.90")),
        ("amount=12345678901234567890.123456789", Decimal("12345678901234567890.123456789")),
        ('amount="9.90"', Decimal("9.90")),
        ('amount={"__type__": "decimal", "__value__": "9.90"}', Decimal("9.90")),
        ('amount={"__type__": "date", "__value__": "2026-11-25"}', date(2026, 11, 25)),
        ("moment=2026-11-25T09:00:00+01:00", datetime(2026, 11, 25, 9, tzinfo=timezone(timedelta(hours=1)))),
        ("moment=2026-11-25T09:00:00Z", datetime(2026, 11, 25, 9, tzinfo=timezone.utc)),
        ("day=2026-11-25", date(2026, 11, 25)),
        ("hour=10:30", time_of_day(10, 30)),
        (f"key={uuid.UUID(int=7)}", uuid.UUID(int=7)),
        ("data=new", b"new"),
        ("raw=5", b"5"),
        ("plain=6", 6),
        ("plain=six", "six"),
        ("price=9.90", 9.9),
        ("nothing=9.90", 9.9),
        ('plain={"__type__": "decimal", "__value__": "9.90"}', Decimal("9.90")),
        ('texts=[{"__type__": "uuid", "__value__": {"hex": "00000000000000000000000000000007"}}]', [uuid.UUID(int=7)]),
    ],
)
def test_a_new_value_is_of_the_type_that_stands_there(
    app: Celery, queue: str, typed: Any, given: str, arrives: Any
) -> None:
    """Where that is one that JSON lacks, exactly as it was typed; elsewhere it is JSON, or what a mark says, or a text."""
    assert run(app, "replay", "-y", "--set", given).exit_code == 0
    (message,) = messages(app, queue)
    name = given.partition("=")[0]
    args, kwargs, _ = message.payload
    found = args[0] if name == "amount" else kwargs[name]
    assert (type(found), found) == (type(arrives), arrives)
    assert args[0] == arrives or (name, args[0]) == (name, Decimal("1.50"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("amount=null", "amount holds a Decimal, and the new value is none; expected one, for example amount=9.90"),
        ("amount=NaN", "amount is NaN"),
        ("moment=tomorrow", "moment holds a datetime"),
        ("day=2026-13-01", "day holds a date"),
        ("hour=25:00", "hour holds a time"),
        ("key=7", "key holds a UUID"),
        ('plain={"__type__": "decimal", "__value__": "many"}', "the new value of plain has a mark of Celery's"),
        ('plain={"__type__": "nothing", "__value__": "many"}', "the new value of plain has a mark of Celery's"),
        ("plain=NaN", "plain is NaN"),
    ],
)
def test_a_new_value_of_another_type_is_refused(app: Celery, queue: str, typed: Any, given: str, said: str) -> None:
    """With its type and an example, and without the value; nothing is sent."""
    result = run(app, "replay", "-y", "--set", given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert ("Traceback" in result.stderr, "many" in result.stderr, "tomorrow" in result.stderr) == (False,) * 3
    assert messages(app, queue) == []


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
    (canary,) = (message.headers["id"] for message in messages(app, app.conf.task_default_queue))
    assert f"Waiting up to 1 s for the canaries, by their task ids: {canary}\n" in result.stderr
    assert "Stopped: 1 of 1 canary did not finish within 1 s" in result.stderr
    assert f"what did not finish waits in {app.conf.task_default_queue} or runs" in result.stderr


def test_a_file_without_letters_is_wrong_use(app: Celery, dead: str, tmp_path: Path) -> None:
    """What export has written has one: an empty file is another one, or was cut."""
    (tmp_path / "cut.jsonl").touch()
    result = run(app, "import", str(tmp_path / "cut.jsonl"), "-Q", dead, "-y")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"there is no letter in {tmp_path / 'cut.jsonl'}; expected what export has written" in result.stderr


def test_the_causes_say_what_an_error_said(app: Celery, three: list[str]) -> None:
    """The first line of one letter's text, so that the first look tells why."""
    told = " ".join(run(app, "stats").stdout.split())
    assert "ValueError: cannot charge o-0:" in told
    assert json.loads(run(app, "stats", "--json").stdout.splitlines()[0])["message"].startswith("cannot charge o-0:")


def test_a_purge_keeps_a_copy_unless_told_not_to(
    app: Celery, dead: str, three: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """In a file that it names, from which the letters can be put back."""
    monkeypatch.chdir(tmp_path)
    result = run(app, "purge", "--yes", "--limit", "2")
    (file,) = tmp_path.iterdir()
    assert result.stdout == f"Deleted 2 letters of {dead}. A copy is in {file.name}.\n"
    assert [letter.id for letter in dead_letters(app, dead)] == three[2:]
    assert run(app, "import", file.name).stdout == f"2 letters were put back into {dead}.\n"
    assert lines(run(app, "import", file.name, "--json")) == [{"imported": 0, "stood_there": 2}]
    again = f"0 letters were put back into {dead}; 2 stood there already.\n"
    assert run(app, "import", "-", stdin=file.read_text()).stdout == again
    broken = run(app, "import", "-", stdin=f"{file.read_text()}junk\n")
    assert (broken.exit_code, "line 3 of the input is no letter" in broken.stderr) == (2, True)
    assert run(app, "purge", "--yes", "--no-export").stdout == f"Deleted 3 letters of {dead}.\n"
    assert len(list(tmp_path.iterdir())) == 1
    assert lines(run(app, "purge", "--json", "-o", "kept", "--older-than", "30d")) == [{"purged": 0, "file": None}]
    assert not (tmp_path / "kept").exists()


def test_a_purge_refuses_a_file_before_it_asks(app: Celery, dead: str, three: list[str], tmp_path: Path) -> None:
    """Nobody is asked for what then cannot be done; and the other file is left as it is."""
    (tmp_path / "kept").write_text("mine")
    result = run(app, "purge", "-o", str(tmp_path / "kept"))
    assert (result.exit_code, result.stdout, "Delete" in result.stderr) == (2, "", False)
    assert result.stderr == f"Error: {tmp_path / 'kept'} is there already; expected the name of a new file\n"
    assert (len(list(dead_letters(app, dead))), (tmp_path / "kept").read_text()) == (3, "mine")


def test_letters_are_not_put_where_tasks_go(
    app: Celery, queue: str, dead: str, three: list[str], tmp_path: Path
) -> None:
    """A worker would run them, beside the replay of the same letters."""
    file = tmp_path / "letters.jsonl"
    run(app, "export", "-o", str(file))
    expected = f"{queue} is where the app's tasks go; expected a dead-letter queue"
    result = run(app, "import", str(file), "-Q", queue)
    assert (result.exit_code, result.stdout, expected in result.stderr) == (2, "", True)
    with pytest.raises(patterns.exceptions.ConfigurationError, match="is where the app's tasks go"):
        dead_letters(app, queue).restore(file)
    app.conf.task_queues = [Queue(queue), Queue("bulk"), Queue(dead)]
    app.amqp.queues = app.amqp.Queues(app.conf.task_queues)
    result = run(app, "import", str(file), "-Q", "bulk")
    assert "bulk is where the app's tasks go; expected a dead-letter queue" in result.stderr
    assert run(app, "import", str(file), "-Q", dead).stdout.endswith("3 stood there already.\n")
    assert messages(app, queue) == []


def test_letters_may_be_put_where_the_app_knows_none(app: Celery, dead: str, three: list[str], tmp_path: Path) -> None:
    """The dead-letter queue of a queue that only a worker's -Q names; a slip of the pen is asked about."""
    file = tmp_path / "letters.jsonl"
    run(app, "export", "-o", str(file))
    unknown = f"slow-{dead} is none of the app's dead-letter queues {dead}"
    result = run(app, "import", str(file), "-Q", f"slow-{dead}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{unknown}, and the broker has no such queue.\n")
    assert "Pass --yes" in result.stderr
    result = run(app, "import", str(file), "-Q", f"slow-{dead}", "-y")
    assert result.stdout == f"3 letters were put back into slow-{dead}.\n"
    result = run(app, "import", str(file), "-Q", f"slow-{dead}")
    assert (result.stdout.endswith("3 stood there already.\n"), result.stderr) == (True, f"{unknown}.\n")


def test_a_dash_is_stdin_or_stdout(
    app: Celery, dead: str, three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no file's name; a file of that name is written with its folder."""
    monkeypatch.chdir(tmp_path)
    assert len(lines(run(app, "export", "-o", "-"))) == 3
    result = run(app, "purge", "-y", "-o", "-")
    assert (result.exit_code, "expected the name of a file that keeps the copy" in result.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
    assert run(app, "purge", "-y", "-o", "./-").exit_code == 0
    assert run(app, "import", "./-", "-Q", dead).stdout == f"3 letters were put back into {dead}.\n"


def test_a_letter_and_a_cause_are_found_in_the_queue_that_has_them(app: Celery, dead: str, three: list[str]) -> None:
    """An id that "stats" showed is enough, whichever queue it stands in."""
    other = f"other-{dead}"

    @app.task(shared=False, name="elsewhere")
    @patterns.dead_letter(other)
    def elsewhere() -> None: ...

    written_by_hand(app, other, task="elsewhere", error="builtins.KeyError")
    (there,) = dead_letters(app, other)
    assert lines(run(app, "show", there.id[:8], "--json"))[0]["id"] == there.id
    assert lines(run(app, "show", three[0], "--json"))[0]["id"] == three[0]
    (cause,) = dead_letters(app, other).stats()
    assert [one["queue"] for one in lines(run(app, "stats", "--cause", cause.fingerprint[:6], "--json"))] == [other]
    result = run(app, "replay", "-y", "--cause", "zz")
    said = f"no letter of the cause zz stands in {other}, {dead}"
    assert (result.exit_code, said in result.stderr) == (1, True), result.output
    result = run(app, "show", "zz")
    assert (result.exit_code, f"no letter zz stands in {other}, {dead}" in result.stderr) == (1, True), result.output
    assert "which queue?" in run(app, "list").stderr


def test_a_router_that_needs_arguments(app: Celery, dead: str, three: list[str], tmp_path: Path) -> None:
    """It is asked without any, and what it would say is not known."""
    app.conf.task_routes = (lambda name, args, kwargs, options, task=None, **_: {"queue": args[0]},)
    assert "3 letters in" in run(app, "list", "-Q", dead).stdout
    assert dead_letters(app, dead).export(file := tmp_path / "letters.jsonl") == 3
    assert dead_letters(app, f"other-{dead}").restore(file) == 3
    assert run(app, "replay", "-y", "-Q", dead, "--to", app.conf.task_default_queue).exit_code == 0


def test_tasks_are_not_sent_where_letters_stand(app: Celery, dead: str, three: list[str]) -> None:
    """No worker consumes another task's dead-letter queue."""

    @app.task(shared=False, name="other")
    @dead_letter(f"z-{dead}")
    def other() -> None: ...

    written_by_hand(app, f"z-{dead}")
    result = run(app, "replay", "--yes", "-Q", dead, "--to", f"z-{dead}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"z-{dead} is for dead letters; expected a queue that a worker consumes" in result.stderr


@pytest.mark.parametrize(
    ("body", "told", "shown"),
    [
        (b'{"broken": [', "body, application/json, utf-8", '{"broken": ['),
        (b"\x80\x81\xff", "body, application/json, utf-8, 3 bytes in base64", "gIH/"),
    ],
)
def test_a_body_that_is_no_json(app: Celery, dead: str, body: bytes, told: str, shown: str) -> None:
    """Text is shown as text; what is none as base64, which it says."""
    letter = written_by_hand(app, dead, reason="unreadable", body=body)
    screen = run(app, "show", letter.id, "--body", columns=100).stdout
    assert f"\n{told}\n{shown}\n" in screen
    evil = written_by_hand(app, dead, reason="content_type_refused", publish={"content_type": f"text/{EVIL}"})
    assert "\x1b" not in run(app, "show", evil.id, "--body").stdout


def test_an_export_is_for_a_pipe_or_a_file(app: Celery, dead: str, three: list[str], tmp_path: Path) -> None:
    """Stdout holds nothing but the lines; a file is new."""
    file = tmp_path / "letters.jsonl"
    assert [line["letter"]["id"] for line in lines(run(app, "export"))] == three
    assert run(app, "export", "-o", str(file)).stdout == f"Wrote 3 letters of {dead} to {file}.\n"
    again = run(app, "export", "-o", str(file))
    assert (again.exit_code, "is there already; expected the name of a new file" in again.stderr) == (2, True)


def test_an_option_from_the_environment_is_one_value(app: Celery, dead: str, three: list[str]) -> None:
    """Celery lets each option be given so; spaces in it are its own."""
    group_ = CliRunner(
        env={"CELERY_PATTERNS_LETTERS_LIST_SINCE": "2020-01-01 09:00", "CELERY_PATTERNS_LETTERS_LIST_QUEUE": dead}
    )
    result = group_.invoke(
        celerys_command,
        ["patterns", "letters", "list", "--json"],
        default_map={"app": app},
        auto_envvar_prefix="CELERY",
    )
    assert [line["id"] for line in lines(result)] == three


@pytest.mark.parametrize("command", ["list", "replay --yes", "replay --yes --json", "purge --yes --no-export"])
@pytest.mark.parametrize("url", ["redis://:hidden@127.0.0.1:1/0", "amqp://me:hidden@127.0.0.1:1//"])
def test_a_broker_that_is_away_is_one_line_without_a_password(url: str, command: str) -> None:
    """Exit code 1, and the address with stars in it; nothing of a work that did not begin."""
    result = run(Celery(broker=url, set_as_current=False), *command.split(), "-Q", "q")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Error: the broker at " in result.stderr
    assert ("hidden" in result.output, "Traceback" in result.output) == (False, False)
    assert result.stderr.endswith("Does it run, and is this the app's broker_url?\n")
    assert len(result.stderr.splitlines()) == 1


def test_a_broker_of_another_kind_is_one_line() -> None:
    """Also one whose transport is not installed."""
    for url, kind in (
        ("memory://", "memory"),
        ("sqs://", "of a kind that is not installed: No module named"),
    ):
        result = run(Celery(broker=url, set_as_current=False), "list", "-Q", "q")
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"reads RabbitMQ and Redis brokers; this app's broker is {kind}" in result.stderr


def test_an_address_that_cannot_be_read() -> None:
    """As with an unescaped character in its password, which is not shown."""
    result = run(Celery(broker="redis://:hid/den@127.0.0.1:6379/0", set_as_current=False), "list", "-Q", "q")
    assert (result.exit_code, result.stdout, "hid" in result.output) == (2, "", False)
    assert "the app's broker_url cannot be read" in result.stderr


def test_what_was_sent_before_an_error_of_ours_is_told(
    app: Celery, queue: str, dead: str, three: list[str], monkeypatch: Any
) -> None:
    """As when the result backend goes away between two canaries."""
    asked: list[str] = []

    def forget(_: Celery, task_id: str) -> None:
        asked.append(task_id)
        if len(asked) > 2:
            raise patterns.exceptions.BackendUnavailable("it is away")

    monkeypatch.setattr(_replay, "forget", forget)
    monkeypatch.setattr("celery_patterns.letters._selection.refuse_canary", lambda *_: None)
    result = run(app, "replay", "-y", "--canary", "3", "--json")
    told = f"Not finished: 2 letters of {dead} were replayed. The others stay in the queue"
    assert (result.exit_code, told in result.stderr, "Error: it is away" in result.stderr) == (1, True, True)
    assert f"Canaries: {', '.join(asked[:2])}." in result.stderr
    assert (json.loads(result.stdout)["sent"], json.loads(result.stdout)["stopped"]) == (2, "BackendUnavailable")
    assert len(messages(app, queue)) == 2


def test_tables_need_rich_and_json_does_not(app: Celery, three: list[str], monkeypatch: Any) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "rich", None)
    result = run(app, "list")
    assert (result.exit_code, result.stdout) == (2, "")
    assert 'tables need rich; run: pip install "celery-patterns[cli]"; --json works without' in result.stderr
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
    """Celery loads it at every call: it brings ten small modules of ours."""
    code = (
        "import sys, celery.bin.base, celery_patterns; package = set(sys.modules); import celery_patterns.cli;"
        "print(*sorted(set(sys.modules) - package))"
    )
    more = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    parts = ("_acts", "_claims", "_keys", "_letters", "_options", "_reports", "_screens", "_targets", "_terminal")
    assert more == ["celery_patterns.cli", *(f"celery_patterns.cli.{name}" for name in parts), "unicodedata"]
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


def test_a_bar_counts_what_is_replayed(app: Celery, broker: str, database: str) -> None:
    """And not what stands in the queue beside it."""
    name = uuid.uuid4().hex[:10]
    environment = {f"FLOOR_{one}": database for one in ("BACKEND", "STORE", "TRACES")}
    environment |= {"FLOOR_BROKER": broker, "FLOOR_NAMESPACE": name}
    for _ in range(5):
        written_by_hand(app, f"q-{name}.dead")
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.entry", "patterns", "letters", "replay", "-y"]
    code, told = on_a_terminal([*command, "--limit", "3", "--rate", "1"], environment)
    assert (code, f"Replayed 3 letters of q-{name}.dead." in told) == (0, True)
    assert ("Replayed  [" in told, "3/3" in told, "/5" in told) == (True, True, False)


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
        assert ("Nothing was done." in told, "Error" in told) == (True, False)
    assert dead_letters(app, f"q-{name}.dead").count() == 2
    code, told = on_a_terminal([*command, "replay", "-Q", f"q-{name}.dead"], environment, "y\n")
    assert (code, f"Replayed 2 letters of q-{name}.dead." in told) == (0, True)
