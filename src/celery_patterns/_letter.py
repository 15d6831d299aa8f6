"""The dead letter: the message itself, with one header more that says where it came from and why it died."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from ._header_values import as_count, as_mappings, as_moment, as_text
from ._history import errors_of, history_of
from ._message import HEADER, first_sent, is_brokers_own, moment

__all__ = [
    "LETTER",
    "MESSAGE_LIMIT",
    "REASONS",
    "TRACEBACK_LIMIT",
    "Letter",
    "clipped",
    "header_of",
    "parent_of",
    "properties_of",
    "read_letter",
    "replay_id",
    "replayed_headers",
    "told_by_headers",
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

TRACEBACK_LIMIT = 16_000
MESSAGE_LIMIT = 2_000

#: The properties of a message that a letter tells of. The others, its content type and encoding, are the letter's own.
_PROPERTIES = (
    "correlation_id",
    "reply_to",
    "expiration",
    "priority",
    "delivery_mode",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
)


@dataclass(frozen=True, kw_only=True)
class Letter:
    """What is known of a dead message. The arguments are in the message, and not here.

    What is not known is None, or empty, and never guessed.

    Attributes:
        id: 32 hexadecimal digits made from task id, first publication, attempt, replay and arguments: two letters of one id
            are the same death. Where the message names no task, made from what tells it from an equal one, if anything does.
        task: The task's name; None where the message does not tell.
        task_id: The id of the task that died; None where the message does not tell.
        root_id: The id of the first task of its workflow.
        parent_id: The id of the task that sent it, if a task did.
        group_id: The id of the group it was a member of, if it was one.
        reason: How it ended. ``failed``: with an exception; ``result_not_encodable``: with a result that no backend can
            carry; ``rejected``: with ``Reject(requeue=False)``, or by a consumer of RabbitMQ's; ``time_limit``: at its hard
            time limit; ``worker_lost``: with its worker, where the task does not go back to its queue then; ``crashed``: it
            took its worker down too often; ``revoked`` and ``expired``: where the task asks for a letter then, or its time
            in a queue of RabbitMQ's was over; ``unknown_task``, ``unreadable``, ``content_type_refused`` and ``malformed``:
            this worker cannot run it; ``queue_full``, ``delivery_limit`` and ``buried_by_broker``: RabbitMQ took it out of a
            queue that was full, after too many deliveries, or for a reason that this release does not know.
        error: The error's type, with its module; empty when RabbitMQ buried it.
        message: The error's text, at most 2,000 characters.
        traceback: The traceback as text, at most 16,000 characters.
        attempt: The attempt that died, the first being 1.
        history: The attempts before, the first and the last seven: attempt, when it started (``at``), and the type of its
            error.
        errors: How many of the attempts before died of which error: eight types, and what came beside under ``others``.
        queue: The queue it came from.
        exchange: The exchange it came by; empty for the default one.
        routing_key: The routing key it came by.
        priority: The message's priority, if it had one.
        properties: The message's own AMQP properties that it had: ``reply_to``, ``expiration`` in milliseconds,
            ``correlation_id``, ``timestamp`` and so on.
        first_published: When the task was first published, in seconds since the epoch by the sender's clock. None where
            the sender did not say: it says so for a task that it knows to wear ``dead_letter`` or ``logged``.
        first_started: When the first attempt started, in seconds since the epoch; None where that is not known.
        died_at: When it died, in seconds since the epoch.
        worker: The worker it died on; None when RabbitMQ buried it.
        replay: How many times it was replayed before.
        broker_count: How many times RabbitMQ buried it from this queue for this reason; 0 when a worker wrote the letter.
        corrected: The arguments that replays have changed, the last ten: ``name``, ``was`` as JSON text of at most 200
            characters, and the ``replay`` that changed it. ``was`` is None where the message shows its arguments to nobody.
    """

    id: str
    task: str | None
    task_id: str | None
    root_id: str | None
    parent_id: str | None = None
    group_id: str | None = None
    reason: str
    error: str
    message: str
    traceback: str
    attempt: int
    history: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    queue: str
    exchange: str
    routing_key: str
    priority: int | None
    properties: dict[str, str | int] = field(default_factory=dict)
    first_published: float | None = None
    first_started: float | None
    died_at: float
    worker: str | None
    replay: int = 0
    broker_count: int = 0
    corrected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def replay_id(self) -> str:
        """The task id that a replay of this letter has, however often it is sent."""
        return replay_id(self.id)


def told_by_headers(headers: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a message tells by itself, of which nothing is trusted to be well made.

    Args:
        headers: Its headers, as of Celery's second protocol.
        ours: What the patterns remember in it.
    """
    attempt, task_id = (as_count(headers.get("retries")) or 0) + 1, as_text(headers.get("id"))
    return {
        "task": as_text(headers.get("task")),
        "task_id": task_id,
        "root_id": as_text(headers.get("root_id")),
        "parent_id": parent_of(task_id, headers.get("parent_id")),
        "group_id": as_text(headers.get("group")),
        "attempt": attempt,
        "history": history_of(ours),
        "errors": errors_of(ours),
        "first_published": first_sent(ours, attempt),
        "first_started": as_moment(ours.get("started")),
        "replay": as_count(ours.get("replay")) or 0,
        "corrected": as_mappings(ours.get("corrected")),
    }


def parent_of(task_id: str | None, parent_id: Any) -> str | None:
    """The task that sent this one. Celery names the task itself where a later attempt was sent by the one before."""
    known = as_text(parent_id)
    return None if known == task_id else known


def header_of(letter: Letter, room: int | None = None) -> str | None:
    """The letter's header, JSON in ASCII, as long as there is room for.

    The traceback gives way first, then the error's text, then the history and the properties.

    Args:
        letter: The letter.
        room: Bytes; None for no limit.

    Returns:
        None when even the shortest is too long.
    """
    for shorter in _ever_shorter(letter):
        text = json.dumps(asdict(shorter))
        if room is None or len(text) <= room:
            return text
    return None


def _ever_shorter(letter: Letter) -> Iterator[Letter]:
    yield letter
    limit = len(letter.traceback)
    while limit:
        limit = limit * 3 // 4 if limit > 100 else 0  # noqa: PLR2004 - less tells nothing
        yield replace(letter, traceback=clipped(letter.traceback, limit))
    bare = replace(letter, traceback="")
    for limit in (MESSAGE_LIMIT // 4, MESSAGE_LIMIT // 16, 0):
        yield (bare := replace(bare, message=clipped(letter.message, limit) if limit else ""))
    yield replace(bare, history=[], errors={}, properties={}, corrected=[])


def read_letter(headers: Any) -> Letter | None:
    """The letter that a message's headers hold; None when it is no letter, or not one this release can read.

    Fields that this release does not know are passed over. A field that is missing, or holds what it cannot hold, is as if
    it were not known. Only ``id``, ``reason``, ``queue`` and ``died_at`` must be there.
    """
    try:
        known = json.loads(headers[LETTER])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(known, dict):
        return None
    values = {name: reads(known.get(name)) for name, reads in _FIELDS.items()}
    if not values["id"] or None in (values["reason"], values["queue"], values["died_at"]):
        return None
    return Letter(**values, history=history_of(known), errors=errors_of(known))


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _words(limit: int) -> Callable[[Any], str]:
    return lambda value: clipped(value, limit) if isinstance(value, str) else ""


def properties_of(told: Any) -> dict[str, str | int]:
    """Of a message's properties what it is good to know, in values that JSON has."""
    if not isinstance(told, Mapping):
        return {}
    known: dict[str, str | int] = {}
    for name in _PROPERTIES:
        value = told.get(name)
        if isinstance(value, datetime):
            value = int(moment(value))
        value = as_text(value) if isinstance(value, str) else as_count(value)
        if value is not None:
            known[name] = value
    return known


#: How a field is read; what this gives for None is what the field holds when it is not there.
_FIELDS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("id", "task", "task_id", "root_id", "parent_id", "group_id", "reason", "worker"), as_text),
    "queue": _string,
    **dict.fromkeys(("exchange", "routing_key"), lambda value: _string(value) or ""),
    "error": lambda value: as_text(value) or "",
    "message": _words(MESSAGE_LIMIT),
    "traceback": _words(TRACEBACK_LIMIT),
    "attempt": lambda value: as_count(value) or 1,
    "priority": as_count,
    "properties": properties_of,
    **dict.fromkeys(("first_published", "first_started", "died_at"), as_moment),
    **dict.fromkeys(("replay", "broker_count"), lambda value: as_count(value) or 0),
    "corrected": as_mappings,
}


def clipped(text: str, limit: int) -> str:
    """Both ends of a long text: a traceback says where it came from at one end, and what happened at the other."""
    if len(text) <= limit:
        return text
    mark = "\n[…]\n"
    keep = max(0, limit - len(mark))
    return text[: keep // 3] + mark + text[len(text) - (keep - keep // 3) :]


def replayed_headers(letter: Letter, headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers of a replay: a new task id made from the letter's, a fresh budget, no stale time, no chord.

    What names no task is not Celery's, or of its first protocol: its own headers stay what they are.
    """
    kept = {name: value for name, value in headers.items() if name != LETTER and not is_brokers_own(name)}
    carried = kept.get(HEADER)
    carried = carried if isinstance(carried, Mapping) else {}
    now = round(time.time(), 6)
    ours: dict[str, Any] = {"replay": letter.replay + 1, "replay_of": letter.id, "replayed": now, "sent": now}
    if letter.first_published is not None:
        ours["first_sent"] = letter.first_published
    for name in ("key", "corrected", "failure"):
        if carried.get(name) is not None:
            ours[name] = carried[name]
    if "task" not in kept:
        return {**kept, HEADER: ours}
    # A chord has long been told that this member failed; to report to it again would count the member twice.
    return {
        **kept,
        "id": replay_id(letter.id),
        "retries": 0,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        HEADER: ours,
    }


def replay_id(digits: str) -> str:
    """The task id that a replay of the letter of this id has, however often it is sent."""
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
