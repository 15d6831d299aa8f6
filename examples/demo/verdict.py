"""Whether the promises held, by what the payment service, the store and the broker say, and not by what we hope."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from celery_patterns.typing import InspectableStore

from .orders import Kind, Order
from .service import Request

#: How long ``charge`` remembers a key.
TTL = timedelta(days=1)

#: A request may be written down a little after its sender was killed; a new worker's first one comes much later.
GRACE = 0.5


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: of a pool process, or of the whole worker when there is no pid."""

    at: float
    pid: int | None = None


@dataclass(frozen=True)
class Death:
    """A letter, and its order."""

    order_id: str
    task_id: str
    reason: str
    error: str


@dataclass
class Evidence:
    """What is known when the afternoon is over.

    Attributes:
        orders: All orders, by id.
        sent: How many messages were sent.
        receipts: What each message that succeeded gave back, for each order.
        failed: The messages that ended as a failure before the replay.
        lost: The messages that a Redis broker lost itself, by task id. Their orders were sent again.
        kills: The SIGKILLs.
        deaths: The letters that stood in the dead-letter queue before the replay.
        replays: The task ids of the replays.
        fixed_at: When the bug was fixed, in seconds since the epoch.
        requests: What the payment service was asked, oldest first.
        charges: How often it charged for each order.
        issued: The receipt it gave for each key.
        done: When each order's work was done, in seconds since the epoch.
        retried: The attempts after which a retry was scheduled, by the worker's log: task id and attempt.
        left: Messages that are left in a queue at the end.
    """

    orders: dict[str, Order] = field(default_factory=dict)
    sent: int = 0
    receipts: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    failed: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    kills: list[Kill] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    replays: set[str] = field(default_factory=set)
    fixed_at: float = 0.0
    requests: list[Request] = field(default_factory=list)
    charges: dict[str, int] = field(default_factory=dict)
    issued: dict[str, str] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)
    retried: set[tuple[str, int]] = field(default_factory=set)
    left: int = 0

    def finished(self, order: Order) -> bool:
        """Whether the order's key says done, and a message of it gave back a receipt."""
        return order.id in self.done and bool(self.receipts[order.id])


@dataclass(frozen=True)
class Promise:
    """One promise, whether it held, and the numbers."""

    text: str
    held: bool
    numbers: str


def read_books(evidence: Evidence, books: dict[str, Any]) -> None:
    """Take over what the payment service wrote down."""
    requests = [Request(**request) for request in books["requests"]]
    evidence.requests = sorted(requests, key=lambda request: request.at)
    evidence.charges, evidence.issued = books["charges"], books["receipts"]


def read_keys(evidence: Evidence, store: InspectableStore, task: str) -> None:
    """Look up when each order's key was done: its record expires one ttl later."""
    for request in {request.order_id: request for request in evidence.requests}.values():
        now = time.time()
        record = store.record(f"{task}:{request.key}")
        if record is not None and record.state == "done":
            evidence.done[request.order_id] = now + (record.expires_in - TTL).total_seconds()


def read_log(evidence: Evidence, text: str) -> None:
    """Look up in the worker's log, a JSON object a line, which attempts were followed by a retry."""
    for line in text.splitlines():
        # Who is killed while it writes leaves half a line.
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event["event"] == "retry_scheduled":
                evidence.retried.add((event["messaging.message.id"], event["attempt"]))


def promises(evidence: Evidence) -> list[Promise]:
    """Every promise, held or not."""
    orders, done = evidence.orders.values(), evidence.done
    finished = [order for order in orders if evidence.finished(order)]
    charges = Counter({order_id: count for order_id, count in evidence.charges.items() if count})
    once = [order for order in finished if charges[order.id] == 1]
    late = [request for request in evidence.requests if request.at > done.get(request.order_id, request.at)]
    reasons = reasons_for_repeats(evidence)
    wrong = list(_wrong_receipts(evidence))
    buried = {death.task_id for death in evidence.deaths}
    # One message for each time a worker took its connection with it: see ``Afternoon``.
    excused = sum(kill.pid is None for kill in evidence.kills)
    return [
        Promise("every order finished", len(finished) == len(orders), f"{len(finished)} of {len(orders)}"),
        Promise(
            "one charge for each order",
            len(once) == len(finished) and charges.total() == len(finished),
            f"{charges.total()} charges, {len(evidence.requests)} requests",
        ),
        Promise("no request after the work was done", not late, f"{len(late)} late"),
        Promise("no repeat without a reason", not reasons["without"], _told(reasons)),
        Promise(
            "every message done, or a letter",
            buried == evidence.failed and len(buried) == len(evidence.deaths) and len(evidence.lost) <= excused,
            f"{evidence.sent} sent, {len(evidence.deaths)} letters"
            + (f", {len(evidence.lost)} lost by Redis" if evidence.lost else ""),
        ),
        Promise("every copy got the one receipt", not wrong, f"{len(wrong)} others"),
        Promise("the queues are empty", not evidence.left, f"{evidence.left} left"),
    ]


def _told(reasons: Counter[str]) -> str:
    told = [reason for reason in ("killed", "retried", "replayed", "without") if reasons[reason]]
    return ", ".join(f"{reasons[reason]} {reason}" for reason in told) or "none"


def _wrong_receipts(evidence: Evidence) -> Iterable[str]:
    key_of = {request.order_id: request.key for request in evidence.requests}
    for order_id, receipts in evidence.receipts.items():
        issued = evidence.issued.get(key_of.get(order_id, ""))
        yield from (order_id for receipt in receipts if receipt != {"receipt": issued})


def reasons_for_repeats(evidence: Evidence) -> Counter[str]:
    """Why each repeated request was made: because of how the one before it ended."""
    reasons: Counter[str] = Counter()
    cut_short = _cut_short(evidence)
    before: dict[str, Request] = {}
    for request in evidence.requests:
        earlier = before.get(request.order_id)
        if earlier is not None:
            reasons[_reason(evidence, earlier, request, cut_short)] += 1
        before[request.order_id] = request
    return reasons


def _reason(evidence: Evidence, earlier: Request, request: Request, cut_short: dict[int, Request]) -> str:
    next_attempt = request.task_id == earlier.task_id and request.attempt > earlier.attempt
    if next_attempt or (earlier.task_id, earlier.attempt) in evidence.retried:
        return "retried"
    if cut_short.get(earlier.pid) is earlier:
        return "killed"
    if request.task_id in evidence.replays and earlier.at < evidence.fixed_at:
        return "replayed"
    return "without"


def _cut_short(evidence: Evidence) -> dict[int, Request]:
    """The last request of every process that was killed: what it asked for before that, it had brought to an end."""
    last = {request.pid: request for request in evidence.requests}
    killed = {kill.pid for kill in evidence.kills}
    fallen = max((kill.at for kill in evidence.kills if kill.pid is None), default=0.0)

    def was_killed(request: Request) -> bool:
        by_itself = evidence.orders[request.order_id].kind is Kind.KILLER and request.at < evidence.fixed_at
        return by_itself or request.pid in killed or request.at <= fallen + GRACE

    return {pid: request for pid, request in last.items() if was_killed(request)}
