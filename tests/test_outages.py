"""The broker goes away under a running task, and comes back: nothing is lost, and the worker is the same one."""

from __future__ import annotations

from typing import Any

from .harness import Floor


def _go_away_and_come_back(server: Any, own: Floor) -> None:
    """Stop the broker, let the held task go on, and start the broker when its worker has noticed."""
    server.stop()
    own.traces.set("go")
    own.wait(lambda: "Cannot connect to" in own.logs() or "Connection to broker lost" in own.logs(), 30, "the loss")
    server.start()


def test_the_next_attempt_waits_for_the_broker(server: Any, own: Floor) -> None:
    """Down when an attempt fails: the next one is published when the broker is back, by the same child."""
    worker = own.worker(concurrency=1, FLOOR_VISIBILITY="5")
    pid = worker.pid
    result = own.task("flaky_held").delay("o-1")
    own.wait(lambda: own.traces.count("runs") == 1, what="the first attempt")
    _go_away_and_come_back(server, own)
    assert result.get(timeout=150) == "done o-1"
    assert sorted({attempt for _, attempt in own.traces.all("runs")}) == [1, 2]
    assert own.traces.all("effects") == ["o-1"]
    assert (worker.alive(), worker.pid) == (True, pid)


def test_the_letter_waits_for_the_broker(server: Any, own: Floor) -> None:
    """Down when a task fails for good: its letter is written when the broker is back, and there is one."""
    worker = own.worker(concurrency=1, FLOOR_VISIBILITY="5")
    result = own.task("doomed_held").delay("o-1")
    own.wait(lambda: own.traces.count("runs") == 1, what="the start")
    _go_away_and_come_back(server, own)
    own.wait(lambda: len(own.letters()) == 1, 100, "the letter")
    assert own.letters()[0].task_id == result.id
    assert worker.alive()
