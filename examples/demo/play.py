"""The afternoon itself: orders come in, processes get killed, the bug is fixed, the dead letters are replayed."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from celery_patterns import dead_letters
from celery_patterns.typing import InspectableStore
from examples.shop import app
from examples.shop.tasks import charge

from .orders import Order, Sending
from .processes import CannotGoOn, Payments, Stage, Worker
from .verdict import Death, Evidence, Kill, read_books, read_keys, read_log

if TYPE_CHECKING:
    from celery.result import AsyncResult

QUEUE, DEAD = "orders", "orders.dead"

#: When somebody is killed, as a share of the time in which orders come in; the pool's process, or the whole worker.
KILLS = [
    (0.12, "process"),
    (0.22, "process"),
    (0.32, "worker"),
    (0.48, "process"),
    (0.56, "process"),
    (0.64, "worker"),
    (0.80, "process"),
    (0.86, "process"),
    (0.94, "worker"),
]

#: How long everybody may take to come to an end, once all orders are in.
PATIENCE = 60.0


class Afternoon:
    """One run of the demo.

    With Redis as broker, a worker takes a message out of the queue in one step and writes down that it has it in the next.
    Killed in between, it takes the message with it; nothing that runs in a worker could help. So the shop does what every
    shop on Redis has to do: it sends an order again that has come to nothing. The order's key makes that safe. On RabbitMQ
    there is no such moment, and nothing is sent again.

    Args:
        stage: Where the processes run.
        payments: The payment service.
        store: Where keys are claimed.
        console: Where it is shown.
        chance: Who decides whom it hits.
    """

    def __init__(
        self,
        stage: Stage,
        payments: Payments,
        store: InspectableStore,
        console: Console,
        chance: random.Random,
    ) -> None:
        self.evidence = Evidence()
        self._stage, self._payments, self._store, self._chance = stage, payments, store, chance
        self._begin = time.monotonic()
        self._waiting: dict[str, tuple[str, AsyncResult[dict[str, str]]]] = {}
        self._order_of: dict[str, str] = {}
        self._broker = app.connection_for_read()
        self._on_redis = app.conf.broker_url.startswith("redis")
        self._release = 1
        self._worker = Worker(stage, release=self._release)
        self._looked = self._nowhere_since = 0.0
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TextColumn("[green]{task.completed:.0f} done[/]  [red]{task.fields[dead]} dead[/]"),
        )
        self.progress = Progress(*columns, console=console)
        self._bar = self.progress.add_task("orders", total=None, dead=0)

    def tell(self, text: str) -> None:
        """Say what happens, and when."""
        self.progress.console.print(f"[dim]{time.monotonic() - self._begin:5.1f} s[/]  {text}", highlight=False)

    def run(self, sendings: list[Sending]) -> None:
        """Play all of it.

        Raises:
            CannotGoOn: When it does not come to an end.
        """
        self._worker.wait_ready()
        with self.progress:
            self._trade(sendings)
            self._fix()
            self._replay()
            self._close()
        self._gather()

    def _trade(self, sendings: list[Sending]) -> None:
        """Send everything while processes are killed, until every message has ended."""
        evidence, span = self.evidence, sendings[-1].at
        evidence.orders = {sending.order.id: sending.order for sending in sendings}
        self.progress.update(self._bar, total=len(evidence.orders))
        twice = len(sendings) - len(evidence.orders)
        self.tell(f"[bold]{len(evidence.orders)} orders come in[/], {twice} of them twice")
        begin, to_send, to_kill = time.monotonic(), deque(sendings), deque(KILLS)

        def ended() -> bool:
            elapsed = time.monotonic() - begin
            while to_send and to_send[0].at <= elapsed:
                self._send(to_send.popleft().order)
                if not to_send:
                    self.tell("all orders are in; the last ones wait for what killed workers held")
            if to_kill and to_kill[0][0] * span <= elapsed and self._kill(to_kill[0][1]):
                to_kill.popleft()
            if not to_send and not self._waiting:
                to_kill.clear()  # nobody is at work any more
            if not (to_send or to_kill) and self._nowhere():
                self._send_again()
            return not (to_send or to_kill or self._waiting)

        self._until(ended, span + PATIENCE, "every message has ended")

    def _nowhere(self) -> bool:
        """Whether messages that have not ended are nowhere in Redis, neither in the queue nor with a worker."""
        if not (self._on_redis and self._waiting) or self._left():
            self._nowhere_since = 0.0
            return False
        # At any one moment a living worker may be just taking one, too.
        self._nowhere_since = self._nowhere_since or time.monotonic()
        return time.monotonic() > self._nowhere_since + 1

    def _send_again(self) -> None:
        lost = {task_id: order_id for task_id, (order_id, _) in self._waiting.items()}
        self.tell(f"[yellow]{len(lost)} lost by Redis[/], popped for a worker that was killed; sent again")
        self._waiting.clear()
        self._nowhere_since = 0.0
        self.evidence.lost |= lost.keys()
        for order_id in sorted(set(lost.values())):
            self._send(self.evidence.orders[order_id])

    def _send(self, order: Order) -> None:
        result = charge.delay(order.id, order.amount, order.card, order.customer)
        self.evidence.sent += 1
        self._wait_for(order.id, result)

    def _wait_for(self, order_id: str, result: AsyncResult[dict[str, str]]) -> None:
        self._order_of[result.id] = order_id
        self._waiting[result.id] = (order_id, result)

    def _kill(self, whom: str) -> bool:
        """Kill a process in the middle of an order, or the whole worker around it; whether there was one."""
        pids = [
            request["pid"]
            for request in self._payments.ask("/running")
            if request["at"] > self._worker.started and all(request["pid"] != kill.pid for kill in self.evidence.kills)
        ]
        if not pids:
            return False
        pid = self._chance.choice(pids)
        if whom == "worker":
            self._worker.kill()
            self.evidence.kills.append(Kill(time.time()))
            self.tell("[red]kill -9[/] of the whole worker")
            return True
        if not self._worker.kill_child(pid):
            return False
        self.evidence.kills.append(Kill(time.time(), pid))
        self.tell(f"[red]kill -9[/] of the worker's process {pid}")
        return True

    def _fix(self) -> None:
        """Look at the dead letters, deploy the release without the bugs, and have the cards unblocked."""
        evidence = self.evidence
        for letter in dead_letters(app, DEAD):
            error = letter.error.rpartition(".")[2]
            evidence.deaths.append(Death(self._order_of[letter.task_id], letter.task_id, letter.reason, error))
        self.tell(f"every order is done, or one of [bold]{len(evidence.deaths)} dead letters[/]")
        self._worker.stop(20)
        evidence.fixed_at = time.time()
        self._payments.tell("/unblock")
        self._release = 2
        self._worker = Worker(self._stage, release=self._release)
        self.tell("the bug is fixed, the cards are unblocked")

    def _replay(self) -> None:
        replays: list[str] = []
        report = dead_letters(app, DEAD).replay_all(on_each=lambda letter, _: replays.append(letter.replay_id))
        self.tell(f"[bold]{report.sent} dead letters replayed[/]")
        for death, task_id in zip(self.evidence.deaths, replays, strict=True):
            self.evidence.replays.add(task_id)
            self._wait_for(death.order_id, app.AsyncResult(task_id))
        self._until(lambda: not self._waiting, PATIENCE, "every replay has ended")

    def _close(self) -> None:
        """Stop the worker once nothing is left: what killed workers held comes back by and by."""
        self._until(lambda: not self._left(), 15, "the queue is empty")
        self._worker.stop(20)
        self.evidence.left = self._left() + dead_letters(app, DEAD).count()
        self.tell("the shop is closed")

    def _left(self) -> int:
        """Messages that wait for the worker; on Redis also those it took, which is where a killed worker's are."""
        channel = self._broker.default_channel
        if self._on_redis:
            return int(channel.client.llen(QUEUE) + channel.client.hlen(channel.unacked_key))
        return int(channel.queue_declare(QUEUE, passive=True).message_count)

    def _gather(self) -> None:
        read_books(self.evidence, self._payments.ask("/books"))
        read_keys(self.evidence, self._store, charge.name)
        read_log(self.evidence, self._worker.log.read_text(errors="replace"))

    def _until(self, over: Callable[[], bool], seconds: float, what: str) -> None:
        """Do what a supervisor does, and watch, until it is over.

        Raises:
            CannotGoOn: When it is not within that time.
        """

        def over_now() -> bool:
            if not self._worker.running():
                if not self._worker.killed:
                    raise CannotGoOn("the worker ended by itself, which no task may make it do")
                self._worker = Worker(self._stage, release=self._release)
                self.tell("[green]the worker is started again[/]")
            self._look()
            return over()

        try:
            self._stage.wait_until(over_now, seconds, what)
        except CannotGoOn as late:
            waiting = ", ".join(sorted({order_id for order_id, _ in self._waiting.values()})) or "no order"
            raise CannotGoOn(f"{late}; waiting for {waiting}") from None

    def _look(self) -> None:
        """See which messages have ended; a few times a second."""
        if time.monotonic() < self._looked + 0.5:
            return
        self._looked = time.monotonic()
        for task_id, (order_id, result) in list(self._waiting.items()):
            if result.state not in ("SUCCESS", "FAILURE"):
                continue
            del self._waiting[task_id]
            if result.state == "SUCCESS":
                self.evidence.receipts[order_id].append(result.result)
            elif task_id not in self.evidence.replays:
                self.evidence.failed.add(task_id)
        finished = sum(bool(receipts) for receipts in self.evidence.receipts.values())
        dead = len({self._order_of[task_id] for task_id in self.evidence.failed})
        self.progress.update(self._bar, completed=finished, dead=dead)
