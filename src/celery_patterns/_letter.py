"""The dead letter: the message itself, with one header more that says where it came from and why it died."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ._call import HEADER, is_brokers_own

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LETTER",
    "MESSAGE_LIMIT",
    "REASONS",
    "TRACEBACK_LIMIT",
    "Letter",
    "clipped",
    "header_of",
    "read_letter",
    "replay_id",
    "replayed_headers",
]

#: The header that makes a message a letter: JSON text, so that any tool can read it.
LETTER = "celery_patterns_letter"

#: Why a letter was written; there is no other reason.
REASONS = frozenset(
    {
        "failed",
        "crashed",
        "result_not_encodable",
        "rejected",
        "time_limit",
        "worker_lost",
        "revoked",
        "expired",
        "unknown_task",
        "unreadable",
        "content_type_refused",
        "malformed",
        "queue_full",
        "delivery_limit",
        "buried_by_broker",
    }
)

#: All headers of an AMQP message share one frame of 128 KiB, and a broker drops the connection over a larger one.
HEADER_BUDGET = 110_000
TRACEBACK_LIMIT = 16_000
MESSAGE_LIMIT = 2_000


@dataclass(frozen=True, kw_only=True)
class Letter:
    """What is known of a dead message. The arguments are in the message, and not here.

    Attributes:
        id: 32 hexadecimal digits made from task id, attempt, replay and arguments: two letters of one id are the same
            death.
        task: The task's name; None where the message does not tell.
        task_id: The id of the task that died; None where the message does not tell.
        root_id: The id of the first task of its workflow.
        reason: How it ended. ``failed``: with an exception; ``result_not_encodable``: with a result that no backend can
            carry; ``rejected``: with ``Reject(requeue=False)``; ``time_limit``: at its hard time limit; ``worker_lost``:
            with its worker, where the task does not go back to its queue then; ``crashed``: it took its worker down too
            often; ``revoked`` and ``expired``: where the task asks for a letter then; ``unknown_task``, ``unreadable``,
            ``content_type_refused`` and ``malformed``: this worker cannot run it.
        error: The error's type, with its module.
        message: The error's text, at most 2,000 characters.
        traceback: The traceback as text, at most 16,000 characters.
        attempt: The attempt that died, the first being 1.
        history: The attempts before, the last ten: attempt, when it started, and the type of its error.
        queue: The queue it came from.
        exchange: The exchange it came by; empty for the default one.
        routing_key: The routing key it came by.
        priority: The message's priority, if it had one.
        first_started: When the first attempt started, in seconds since the epoch.
        died_at: When it died, in seconds since the epoch.
        worker: The worker it died on.
        replay: How many times it was replayed before.
        corrected: The arguments that replays have changed, the last ten: ``name``, ``was`` as JSON text of at most 200
            characters, and the ``replay`` that changed it. ``was`` is None where the message shows its arguments to nobody.
    """

    id: str
    task: str | None
    task_id: str | None
    root_id: str | None
    reason: str
    error: str
    message: str
    traceback: str
    attempt: int
    history: list[dict[str, Any]] = field(default_factory=list)
    queue: str
    exchange: str
    routing_key: str
    priority: int | None
    first_started: float
    died_at: float
    worker: str | None
    replay: int = 0
    corrected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def replay_id(self) -> str:
        """The task id that a replay of this letter has, however often it is sent."""
        return replay_id(self)


def header_of(letter: Letter, beside: Mapping[str, Any]) -> str:
    """The letter's header, as long as the message's own headers leave room for."""
    room = HEADER_BUDGET - len(json.dumps(beside, default=str))
    text = json.dumps(asdict(letter))
    if len(text) <= room:
        return text
    spare = max(0, len(letter.traceback) - (len(text) - room))
    shorter = {**asdict(letter), "traceback": clipped(letter.traceback, spare // 2)}
    return json.dumps(shorter)


def read_letter(headers: Mapping[str, Any]) -> Letter | None:
    """The letter that a message's headers hold; None when it is no letter, or not one this release can read."""
    try:
        known = json.loads(headers[LETTER])
        names = Letter.__dataclass_fields__
        return Letter(**{name: value for name, value in known.items() if name in names})
    except (KeyError, TypeError, ValueError):
        return None


def clipped(text: str, limit: int) -> str:
    """Both ends of a long text: a traceback says where it came from at one end, and what happened at the other."""
    if len(text) <= limit:
        return text
    mark = "\n[…]\n"
    keep = max(0, limit - len(mark))
    return text[: keep // 3] + mark + text[len(text) - (keep - keep // 3) :]


def replayed_headers(letter: Letter, headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers of a replay: a new task id made from the letter's, a fresh budget, no stale time, no chord."""
    kept = {name: value for name, value in headers.items() if name != LETTER and not is_brokers_own(name)}
    carried = kept.get(HEADER)
    carried = carried if isinstance(carried, dict) else {}
    ours = {"replay": letter.replay + 1, "replay_of": letter.id, "sent": round(time.time(), 6)}
    for name in ("key", "corrected"):
        if carried.get(name) is not None:
            ours[name] = carried[name]
    # A chord has long been told that this member failed; to report to it again would count the member twice.
    return {
        **kept,
        "id": replay_id(letter),
        "retries": 0,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        HEADER: ours,
    }


def replay_id(letter: Letter) -> str:
    """The task id a replay of this letter has, however often it is sent."""
    digits = letter.id
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
