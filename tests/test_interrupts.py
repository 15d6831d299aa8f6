"""Ctrl-C in a command that works with letters: it says how far it came, nothing is lost, and calling it again goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from celery_patterns import dead_letters
from celery_patterns.letters import _redis
from celery_patterns.letters._link import Link
from celery_patterns.letters._undisturbed import undisturbed

from .harness import ROOT, Floor
from .servers import wait_until
from .test_cli import run
from .test_replay import declare, fill, messages, standing, written_by_hand

_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def typed(shop: Floor, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command, running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.apps.entry", "patterns", "letters", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **shop.environment},
        # What runs in the background of a script does not hear all of these, and its children inherit that.
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in _HEARD],  # noqa: PLW1509 - nothing else is done
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def interrupted(shop: Floor, *arguments: str, when: Any, by: signal.Signals = signal.SIGINT) -> tuple[str, str, int]:
    """Interrupt it at a moment; what it said, and how many letters it named."""
    with typed(shop, *arguments) as process:
        wait_until(when, 60, "the moment")
        process.send_signal(by)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    return out, err, _named(err)


def interrupted_in_the_wait(process: subprocess.Popen[str], server: Any) -> tuple[str, int]:
    """Take its broker away until it was interrupted; what it said of the wait, and how many letters it named."""
    assert process.stderr is not None
    server.stop()
    said = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    server.start()
    assert process.returncode == 130
    return said, _named(err)


def _named(err: str) -> int:
    named = re.search(r"Interrupted: ([\d,]+) letters?", err)
    assert named is not None, err
    return int(named[1].replace(",", ""))


def there(shop: Floor, queue: str) -> int:
    """How many messages stand in a queue, which there may not be."""
    with shop.app.connection_for_read() as connection:
        try:
            return int(connection.default_channel.queue_declare(queue=queue, passive=True).message_count)
        except connection.channel_errors:
            return 0


def test_the_letter_in_hand_is_finished() -> None:
    """A first Ctrl-C waits for it, a second one does not; afterwards all is as before."""
    outside, done = signal.signal(signal.SIGINT, signal.default_int_handler), []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), undisturbed():
        signal.raise_signal(signal.SIGINT)
        done.append("the first")
    with pytest.raises(KeyboardInterrupt), undisturbed():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("the second")
    assert (done, signal.getsignal(signal.SIGINT)) == (["the first"], before)
    signal.signal(signal.SIGINT, outside)


@pytest.mark.parametrize("task", ["doomed", "doomed_keyed"])
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["people", "machines"])
def test_a_replay(shop: Floor, task: str, more: list[str]) -> None:
    """What it says was sent is what was sent, each once; the others are sent when it is called again."""
    declare(shop.app, shop.queue)
    ids = {written_by_hand(shop.app, shop.dead, task=task).replay_id for _ in range(30)}
    out, err, count = interrupted(
        shop, "replay", "-y", "--rate", "20", *more, when=lambda: there(shop, shop.queue) >= 3
    )
    assert "The others stay in the queue; the same command goes on with them." in err
    if more:
        report = json.loads(out)
        assert (report["sent"], report["stopped"]) == (count, "interrupted")
    assert 3 <= count < 30
    wait_until(lambda: there(shop, shop.dead) == 30 - count, 20, "the others stand there")
    assert there(shop, shop.queue) == count
    with typed(shop, "replay", "-y") as again:
        again.communicate(timeout=60)
    assert again.returncode == 0
    sent = [message.headers["id"] for message in messages(shop.app, shop.queue)]
    assert (len(sent), set(sent)) == (30, ids)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
def test_a_session_that_ends(shop: Floor, by: signal.Signals) -> None:
    """What a container or a lost terminal sends is heard as Ctrl-C is."""
    declare(shop.app, shop.queue)
    fill(shop.app, shop.dead, 30)
    _, _, count = interrupted(shop, "replay", "-y", "--rate", "20", when=lambda: there(shop, shop.queue) >= 3, by=by)
    wait_until(lambda: there(shop, shop.dead) == 30 - count, 20, "the others stand there")
    assert there(shop, shop.queue) == count


def test_a_wait_for_the_broker(server: Any, own: Floor) -> None:
    """It says that it waits, and need not be sat out."""
    declare(own.app, own.queue)
    fill(own.app, own.dead, 30)
    with typed(own, "replay", "-y", "--rate", "5") as process:
        wait_until(lambda: there(own, own.queue) >= 3, 60, "some are replayed")
        said, sent = interrupted_in_the_wait(process, server)
    assert said == "the broker has gone; it is waited for, up to 30 seconds\n"
    assert there(own, own.dead) == 30 - sent


def test_a_broker_that_goes_and_stays_away(server: Any, own: Floor, monkeypatch: Any, caplog: Any) -> None:
    """What was done until then is told; called again, the command goes on."""
    for room, name in ((Link, "PATIENCE"), (_redis, "_PATIENCE")):
        monkeypatch.setattr(room, name, timedelta(seconds=2))
    declare(own.app, own.queue)
    ids = {written_by_hand(own.app, own.dead).replay_id for _ in range(40)}

    def stop() -> None:
        wait_until(lambda: there(own, own.queue) >= 3, 60, "some are replayed")
        server.stop()

    stopping = threading.Thread(target=stop)
    stopping.start()
    result = run(own.app, "replay", "-y", "--rate", "10", "--json", "-Q", own.dead)
    stopping.join()
    report = json.loads(result.stdout)
    told = f"Not finished: {report['sent']} letters of {own.dead} were replayed. The others stay in the queue"
    assert (result.exit_code, told in result.stderr) == (1, True), result.output
    assert "the broker has gone; it is waited for, up to 2 seconds" in caplog.text
    assert "Error: the broker at " in result.stderr
    assert report["stopped"] not in (None, "interrupted")
    server.start()
    assert 3 <= report["sent"] < 40
    assert run(own.app, "replay", "-y", "-Q", own.dead).exit_code == 0
    sent = [message.headers["id"] for message in messages(own.app, own.queue)]
    assert set(sent) == ids
    assert len(sent) <= 41  # the one in flight, on RabbitMQ


def test_a_wait_for_canaries(shop: Floor) -> None:
    """It need not be sat out."""
    declare(shop.app, shop.queue)
    for _ in range(5):
        written_by_hand(shop.app, shop.dead)
    _, _, count = interrupted(
        shop, "replay", "-y", "--canary", "2", "--canary-timeout", "5m", when=lambda: there(shop, shop.queue) == 2
    )
    assert count == 2
    assert (there(shop, shop.queue), dead_letters(shop.app, shop.dead).count()) == (2, 3)


def test_a_purge(shop: Floor, tmp_path: Path) -> None:
    """The file holds all, and what it says was deleted is what is gone."""
    fill(shop.app, shop.dead, total := 5_000)
    kept = tmp_path / "kept"
    _, err, count = interrupted(
        shop, "purge", "-y", "-o", str(kept), when=lambda: kept.exists() and there(shop, shop.dead) < total
    )
    assert f"{kept} holds all that were to be deleted." in err
    wait_until(lambda: there(shop, shop.dead) == total - count, 20, "the others stand there")
    assert len(kept.read_text().splitlines()) == total


def test_an_export(shop: Floor, tmp_path: Path) -> None:
    """There is no half of a file, and all letters stay."""
    fill(shop.app, shop.dead, total := 5_000)
    kept = tmp_path / "kept"
    with typed(shop, "export", "-o", str(kept)) as process:
        wait_until(lambda: any(tmp_path.glob(".kept.*")), 60, "it writes")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (
        130,
        f"Interrupted: {kept} was not written. All letters stay in the queue.\n",
    )
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: standing(shop.app, shop.dead) == total, 20, "all letters stand there")


def test_an_import(shop: Floor, tmp_path: Path) -> None:
    """What it says was put back stands there, and the rest is when it is called again."""
    fill(shop.app, shop.dead, total := 3_000)
    letters, kept = dead_letters(shop.app, shop.dead), tmp_path / "kept"
    letters.export(kept)
    letters.purge()
    _, _, count = interrupted(shop, "import", str(kept), "-Q", shop.dead, when=lambda: there(shop, shop.dead) >= 50)
    assert 50 <= count < total
    wait_until(lambda: there(shop, shop.dead) == count, 20, "they stand there")
    with typed(shop, "import", str(kept), "-Q", shop.dead) as again:
        out, _ = again.communicate(timeout=60)
    assert out == f"{total - count:,} letters were put back into {shop.dead}; {count:,} stood there already.\n"
    assert there(shop, shop.dead) == total


def test_an_import_that_waits_for_the_broker(server: Any, own: Floor, tmp_path: Path) -> None:
    """It says that it waits, and need not be sat out; called again, it goes on."""
    fill(own.app, own.dead, total := 3_000)
    letters, kept = dead_letters(own.app, own.dead), tmp_path / "kept"
    letters.export(kept)
    letters.purge()
    with typed(own, "import", str(kept), "-Q", own.dead) as process:
        wait_until(lambda: there(own, own.dead) >= 50, 60, "some are put back")
        said, back = interrupted_in_the_wait(process, server)
    assert said.endswith("up to 30 seconds\n")
    assert 50 <= back < total
    wait_until(
        lambda: there(own, own.dead) in (back, back + 1), 20, "they stand there"
    )  # one may lack its confirmation
    with typed(own, "import", str(kept), "-Q", own.dead) as again:
        again.communicate(timeout=60)
    assert again.returncode == 0
    assert there(own, own.dead) == total
