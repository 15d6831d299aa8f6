"""Money that is moved exactly once, by workers that are killed all the time."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from celery_patterns.stores import SQLStore

from .apps.bank import ACCOUNTS, BALANCE, Bank
from .harness import Floor, floor

TASKS = ["transfer_together", "transfer_apart"]
#: Between two kills, in seconds: any child, a whole worker, every worker.
PAUSE = 0.7


@pytest.fixture
def own(environment: dict[str, str], postgres: str, tmp_path: Path) -> Iterator[Floor]:
    environment |= {"FLOOR_STORE": postgres, "FLOOR_BANK": postgres}
    SQLStore(postgres).create_table()
    with floor(environment, tmp_path) as made:
        made.app.bank.open(TASKS)
        yield made


@contextmanager
def _kills(own: Floor, dice: random.Random) -> Iterator[Counter[str]]:
    done: Counter[str] = Counter()
    over = threading.Event()

    def kill() -> None:
        while not over.wait(PAUSE):
            alive = [worker for worker in own.workers if worker.alive()]
            children = [pid for worker in alive for pid in worker.children()]
            whom = dice.choices(["child", "worker", "all"], [6, 3, 1])[0]
            done[whom] += 1
            if whom == "child":
                with suppress(ProcessLookupError, IndexError):
                    os.kill(dice.choice(children), signal.SIGKILL)
            for worker in alive if whom == "all" else dice.sample(alive, min(len(alive), whom == "worker")):
                worker.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def _send(own: Floor, number: int) -> dict[str, list[Any]]:
    sent: dict[str, list[Any]] = {task: [] for task in TASKS}
    for transfer in range(number):
        for task in TASKS:
            one = own.task(task).delay(transfer)
            sent[task].append(one)
            if transfer % 4 == 0:  # the same call once more, and the same message
                sent[task].append(own.task(task).delay(transfer))
                own.task(task).apply_async((transfer,), task_id=one.id)
    return sent


def _run(own: Floor, number: int) -> dict[str, dict[str, Any]]:
    bank: Bank = own.app.bank
    workers = own.supervised(3, concurrency=2, FLOOR_VISIBILITY="5", FLOOR_HASTY="1")
    with workers, _kills(own, random.Random(7)) as kills:
        sent = _send(own, number)
        own.wait(lambda: all(len(set(bank.booked(task))) == number for task in TASKS), 60 + number, "each transfer")
    with own.supervised(2, concurrency=2, FLOOR_VISIBILITY="5"):
        open_ = lambda: [one.id for results in sent.values() for one in results if not one.ready()]  # noqa: E731
        own.wait(lambda: not open_(), 120, "each result")
    print(dict(kills))  # noqa: T201
    assert sum(kills.values()) > 2
    told = {}
    for task in TASKS:
        balances = bank.balances(task)
        told[task] = {
            "transfers": number,
            "messages": len(sent[task]) + (number + 3) // 4,
            "bookings": len(bank.booked(task)),
            "booked more than once": sum(count > 1 for count in Counter(bank.booked(task)).values()),
            "accounts with another balance": sum(
                one != wanted for one, wanted in zip(balances, _wanted(number), strict=True)
            ),
            "sum of all accounts": sum(balances),
            "wrong receipts": sum(one.result[:2] != "r-" for one in sent[task]),
        }
    return told


def _wanted(number: int) -> list[int]:
    balances = [BALANCE] * ACCOUNTS
    for transfer in range(number):
        source, target, amount = Bank.transfer(transfer)
        balances[source] -= amount
        balances[target] += amount
    return balances


def _judge(told: dict[str, dict[str, Any]], number: int) -> None:
    for name in told["transfer_together"]:
        print(f"{name:32}", *(f"{told[task][name]:>20}" for task in TASKS))  # noqa: T201
    together = told["transfer_together"]
    assert together["bookings"] == number, told
    assert together["booked more than once"] == 0, told
    assert together["accounts with another balance"] == 0, told
    assert together["sum of all accounts"] == ACCOUNTS * BALANCE, told
    assert together["wrong receipts"] == 0, told


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_transfers_are_booked_once(own: Floor) -> None:
    """Workers are killed, messages come twice: each transfer is booked, and none twice."""
    _judge(_run(own, 300), 300)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)  # Redis loses a message that a killed worker was taking
def test_two_thousand_transfers_are_booked_once(own: Floor) -> None:
    """And where the record is written after the transaction, a kill in between books some of them twice."""
    told = _run(own, 2000)
    _judge(told, 2000)
    assert told["transfer_apart"]["booked more than once"] > 0, "the kills were too few to show anything"
