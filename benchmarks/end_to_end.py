"""Publishing to and draining a queue on real brokers, beside plain Celery.

Every row has a worker of its own, with two prefork processes. It is replaced a few times, by one that happens to lie
otherwise in memory and to hash otherwise: a worker may be 3 percent faster than its twin for as long as it lives. In each
round both children of every worker are held, the messages of all rows are published in small blocks that take turns, and
then one worker after the other is let go. The time runs from a first to a last message that note when they are executed;
they are plain tasks in every row, and between them nothing is counted or polled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import redis

from tests.servers import RabbitServer

from .app import (
    ALL,
    ALL_INFO,
    DEAD,
    DEAD_WAITS,
    EVERYTHING,
    LETTERS,
    NO_STORE,
    ONCE,
    PINGS,
    PLAIN,
    PLAIN_AGAIN,
    PLAIN_INFO,
    RESULTS,
    ROWS,
    WAITS,
    WAITS_AGAIN,
    Site,
)
from .lane import BenchRedis, Drained, Lane
from .measure import Section, Spread, Table, Target, at_least, differences, ratios, rotated

REDIS, RABBIT = "Redis", "RabbitMQ"
#: A row, the one that it is compared with, and the part of its rate that is wanted.
DRAIN_TARGETS = {
    RABBIT: [(NO_STORE, PLAIN, 0.88), (ALL, PLAIN, 0.70), (ALL, PLAIN_INFO, 0.80)],
    REDIS: [(NO_STORE, PLAIN, 0.95), (ALL, PLAIN, 0.93)],
}
PUBLISH_TARGET = 0.95
LETTERS_TARGET = 0.95
#: The rows that are measured beside each other.
ALL_ROWS = (PLAIN, PLAIN_INFO, RESULTS, ONCE, NO_STORE, PINGS, ALL, ALL_INFO)
LETTERS_ROWS = (PLAIN, PLAIN_AGAIN, DEAD)
WAITING_ROWS = (WAITS, WAITS_AGAIN, DEAD_WAITS)
WARM, BLOCK = 100, 25


@dataclass(frozen=True)
class Effort:
    """How many rounds of how many tasks, with each of so many workers one after the other."""

    tasks: int
    rounds: int
    workers: int


FULL, QUICK = Effort(800, 5, 5), Effort(400, 3, 1)
#: What is looked for is smaller than the differences between a worker and its twin: so many workers, and few rounds of each.
LETTERS_FULL = Effort(800, 3, 12)
WAITING_FULL, WAITING_QUICK = Effort(200, 3, 4), Effort(100, 2, 1)


@dataclass
class Rounds:
    """What was measured for one row, a number a round."""

    published: list[float] = field(default_factory=list)
    drained: list[float] = field(default_factory=list)
    main_cpu: list[float] = field(default_factory=list)
    child_cpu: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)


def measure(*, quick: bool, say: Callable[[str], None]) -> list[Section]:
    effort = QUICK if quick else FULL
    return [_section(name, found, effort.tasks) for name, found in _on_both_brokers(ALL_ROWS, effort, say)]


def measure_letters(*, quick: bool, say: Callable[[str], None]) -> list[Section]:
    """What a succeeding task pays for ``dead_letter``, beside plain Celery with the same acknowledgement.

    With no body at all, where every microsecond is seen, and with one that waits for 10 milliseconds.
    """
    empty, waiting = (QUICK, WAITING_QUICK) if quick else (LETTERS_FULL, WAITING_FULL)
    return [
        _letters_section(f"{name}, {what}", found, rows, effort.tasks)
        for what, rows, effort in (("no body", LETTERS_ROWS, empty), ("a body of 10 ms", WAITING_ROWS, waiting))
        for name, found in _on_both_brokers(rows, effort, say)
    ]


def _on_both_brokers(
    rows: Sequence[str], effort: Effort, say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Rounds]]]:
    store, rabbit = BenchRedis(), RabbitServer()
    with ExitStack() as stack:
        for server in (store, rabbit):
            stack.callback(server.close)
            server.start()
        processes = [server.process.pid for server in (store, rabbit) if server.process is not None]
        for name, url, count in ((REDIS, store.url(), 1), (RABBIT, rabbit.url, 2)):
            yield name, _broker(name, url, store, processes[:count], rows, effort, say)


def _broker(
    name: str,
    url: str,
    store: BenchRedis,
    servers: list[int],
    rows: Sequence[str],
    effort: Effort,
    say: Callable[[str], None],
) -> dict[str, Rounds]:
    found = {row: Rounds() for row in rows}
    for shift in range(effort.workers):
        with ExitStack() as stack, redis.Redis.from_url(store.url(1)) as records:
            records.flushdb()
            lanes: dict[str, Lane] = {}
            for row in rotated(list(rows), shift):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                lane = Lane(Site(row, url, store.url(1), f"bench-{row}"), folder, servers)
                lanes[row] = stack.enter_context(closing(lane))
            for number in range(effort.rounds):
                for row, (published, drained) in _round(lanes, number, effort.tasks).items():
                    found[row].published.append(published)
                    found[row].drained.append(drained.seconds)
                    found[row].main_cpu.append(drained.main_cpu)
                    found[row].child_cpu.append(drained.child_cpu)
                    found[row].server_cpu.append(drained.server_cpu)
                say(f"{name}: worker {shift + 1}, round {number + 1}")
            _refuse_other_work(lanes, effort.rounds * (effort.tasks + WARM), int(records.dbsize()))
    return found


def _round(lanes: dict[str, Lane], number: int, tasks: int) -> dict[str, tuple[float, Drained]]:
    for lane in lanes.values():
        lane.hold()
        lane.publish(WARM)
        lane.mark("first")
    seconds = dict.fromkeys(lanes, 0.0)
    for block in range(tasks // BLOCK):
        for row in rotated(list(lanes), block):
            seconds[row] += lanes[row].publish(BLOCK)
    drained: dict[str, Drained] = {}
    for lane in lanes.values():
        lane.mark("last")
    for row in rotated(list(lanes), number):
        drained[row] = lanes[row].drained(tasks)
    return {row: (seconds[row] / tasks, drained[row]) for row in lanes}


def _refuse_other_work(lanes: dict[str, Lane], tasks: int, records: int) -> None:
    """A row that failed its tasks, or did not claim or log them, would be measured doing something else."""
    keyed = sum(ROWS[row].wears is EVERYTHING for row in lanes if row != PINGS)
    if records != keyed * tasks:
        raise AssertionError(f"expected {keyed * tasks} records in the store, got {records}")
    for row, lane in lanes.items():
        text = lane.log.read_text()
        events = text.count("task_succeeded")
        if events != (0 if ROWS[row].wears in ((), LETTERS) else tasks):
            raise AssertionError(f"{row}: expected {tasks} events, got {events}; the log ends {text[-500:]}")
        lines = text.count("received")
        if (lines >= tasks) != ROWS[row].celerys_lines:
            raise AssertionError(f"{row}: found {lines} lines of Celery's own")


def _section(broker: str, found: dict[str, Rounds], tasks: int) -> Section:
    plain, info = found[PLAIN], found[PLAIN_INFO]
    drain = {row: ratios(plain.drained, rounds.drained) for row, rounds in found.items()}
    publish = {row: ratios(plain.published, rounds.published) for row, rounds in found.items()}
    rows = [
        (
            ROWS[row].says,
            f"{1 / Spread.of(rounds.drained).median:.0f}",
            Spread.of(drain[row]).text(2),
            Spread.of(ratios(info.drained, rounds.drained)).text(2),
            _added(rounds.main_cpu, plain.main_cpu),
            _added(rounds.child_cpu, plain.child_cpu),
            _added(rounds.server_cpu, plain.server_cpu),
            f"{1 / Spread.of(rounds.published).median:.0f}",
            Spread.of(publish[row]).text(2),
        )
        for row, rounds in found.items()
    ]
    columns = (
        "row",
        "drain/s",
        "of plain",
        "of plain at INFO",
        "CPU added, µs/task: main process",
        "its children",
        "the servers",
        "publish/s",
        "of plain",
    )
    title = f"{broker}: {tasks} tasks a round, median of {len(plain.drained)} interleaved rounds (quartiles)"
    return Section(
        broker,
        [Table(title, columns, rows)],
        _targets(broker, found),
        {"tasks": tasks, "seconds per task": {row: vars(rounds) for row, rounds in found.items()}},
    )


def _letters_section(broker: str, found: dict[str, Rounds], names: Sequence[str], tasks: int) -> Section:
    plain, dead = found[names[0]], names[-1]
    drain = {row: ratios(plain.drained, rounds.drained) for row, rounds in found.items()}
    rows = [
        (
            ROWS[row].says,
            f"{1 / Spread.of(rounds.drained).median:.0f}",
            Spread.of(drain[row]).text(3),
            _added(rounds.main_cpu, plain.main_cpu),
            _added(rounds.child_cpu, plain.child_cpu),
            Spread.of(ratios(plain.published, rounds.published)).text(3),
        )
        for row, rounds in found.items()
    ]
    columns = (
        "row",
        "drain/s",
        "of plain",
        "CPU added, µs/task: main process",
        "its children",
        "publish rate of plain",
    )
    title = (
        f"{broker}, a succeeding task that wears dead_letter: {tasks} tasks a round, median of {len(plain.drained)} "
        "interleaved rounds (quartiles)"
    )
    return Section(
        f"{broker}, dead_letter",
        [Table(title, columns, rows)],
        [at_least(f"{broker}, drain rate of plain: {ROWS[dead].says}", LETTERS_TARGET, drain[dead])],
        {"tasks": tasks, "seconds per task": {row: vars(rounds) for row, rounds in found.items()}},
    )


def _added(values: list[float], plain: list[float]) -> str:
    return Spread.of([1e6 * value for value in differences(values, plain)]).text(0)


def _targets(broker: str, found: dict[str, Rounds]) -> list[Target]:
    publish = ratios(found[PLAIN].published, found[ALL].published)
    return [
        *(
            at_least(
                f"{broker}, drain rate: {ROWS[row].says}; of {ROWS[base].says}",
                least,
                ratios(found[base].drained, found[row].drained),
            )
            for row, base, least in DRAIN_TARGETS[broker]
        ),
        at_least(f"{broker}, publish rate of plain: {ROWS[ALL].says}", PUBLISH_TARGET, publish),
    ]
