"""The dead letter: the message itself, with one header more that says where it came from and why it died."""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kombu import serialization

from ._call import ATOMS, HEADER, is_brokers_own
from ._codec import text_of
from ._keys import digest
from ._republish import carried_headers, message_serializer, queue_of
from .exceptions import TooManyCrashes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._call import Call

__all__ = ["LETTER", "Letter", "letter_message", "read_letter", "replay_id", "replayed_headers", "written"]

#: The header that makes a message a letter: JSON text, so that any tool can read it.
LETTER = "celery_patterns_letter"

#: All headers of an AMQP message share one frame of 128 KiB, and a broker drops the connection over a larger one.
HEADER_BUDGET = 110_000
TRACEBACK_LIMIT = 16_000
MESSAGE_LIMIT = 2_000

# The headers of Celery's message protocol 2. A running request keeps them, beside much that is not the message's.
_PROTOCOL = (
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
)
_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")


@dataclass(frozen=True, kw_only=True)
class Letter:
    """What is known of a dead message. The arguments are in the message, and not here.

    Attributes:
        id: 32 hexadecimal digits made from task id, attempt, replay and arguments: two letters of one id are the same
            death.
        task: The task's name.
        task_id: The id of the task that died.
        root_id: The id of the first task of its workflow.
        reason: ``failed``, or ``crashed`` when it took its worker down too often.
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
    """

    id: str
    task: str
    task_id: str
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


def written(call: Call, error: BaseException) -> Letter:
    """The letter of a call that died of ``error``."""
    kind = type(error)
    info = call.request.delivery_info or {}
    exchange, key = call.came_by
    queue: Any = queue_of(call)
    replay = int(call.header.get("replay", 0))
    return Letter(
        id=digest(call.run_id, str(call.attempt), str(replay), _seen(call.received_args, call.received_kwargs)),
        task=call.task,
        task_id=call.id,
        root_id=call.request.root_id,
        reason="crashed" if isinstance(error, TooManyCrashes) else "failed",
        error=f"{kind.__module__}.{kind.__qualname__}",
        message=_clipped(text_of(error), MESSAGE_LIMIT),
        traceback=_clipped("".join(traceback.format_exception(kind, error, error.__traceback__)), TRACEBACK_LIMIT),
        attempt=call.attempt,
        history=list(call.header.get("history", ())),
        queue=key if queue is None else str(queue.name),
        exchange=exchange if exchange is not None else "" if queue is None else str(queue.exchange.name),
        routing_key=key,
        priority=info.get("priority"),
        first_started=call.first_started,
        died_at=time.time(),
        worker=call.request.hostname,
        replay=replay,
    )


def _seen(args: Any, kwargs: Any) -> str:
    """What tells two messages of one task id apart: an id may be chosen, and used again for other work."""
    try:
        return json.dumps([args, kwargs], default=_stable)
    except (TypeError, ValueError, RecursionError):  # keys that JSON has no word for, or too deep
        return ""


def _stable(value: Any) -> Any:
    # An object's text may hold its address, and a set's its order, which the next process to see it does not share.
    name = type(value).__name__
    if type(value) in ATOMS:
        return f"{name} {value}"
    if isinstance(value, set | frozenset):
        return [name, sorted(json.dumps(item, default=_stable) for item in value)]
    return [name, getattr(value, "__dict__", None)]


def letter_message(call: Call, letter: Letter) -> dict[str, Any]:
    """An equal message, as arguments to ``Producer.publish``: body as received, its headers, and the letter's."""
    known = call.request.__dict__
    headers = {name: known.get(name) for name in _PROTOCOL}
    headers.update(carried_headers(call))
    embed = {name: known.get(name) for name in _EMBEDDED}
    content_type, encoding, body = serialization.dumps(
        [list(call.received_args), call.received_kwargs, embed],
        message_serializer(call),
    )
    headers[LETTER] = _header(letter, HEADER_BUDGET - len(json.dumps(headers, default=str)))
    return {
        "body": body,
        "headers": headers,
        "content_type": content_type,
        "content_encoding": encoding,
        "correlation_id": call.id,
        "reply_to": known.get("reply_to") or "",
        "delivery_mode": 2,
    }


def _header(letter: Letter, room: int) -> str:
    text = json.dumps(asdict(letter))
    if len(text) <= room:
        return text
    spare = max(0, len(letter.traceback) - (len(text) - room))
    shorter = {**asdict(letter), "traceback": _clipped(letter.traceback, spare // 2)}
    return json.dumps(shorter)


def read_letter(headers: Mapping[str, Any]) -> Letter | None:
    """The letter that a message's headers hold; None when it is no letter, or not one this release can read."""
    try:
        known = json.loads(headers[LETTER])
        names = Letter.__dataclass_fields__
        return Letter(**{name: value for name, value in known.items() if name in names})
    except (KeyError, TypeError, ValueError):
        return None


def _clipped(text: str, limit: int) -> str:
    """Both ends of a long text: a traceback says where it came from at one end, and what happened at the other."""
    if len(text) <= limit:
        return text
    mark = "\n[…]\n"
    keep = max(0, limit - len(mark))
    return text[: keep // 3] + mark + text[len(text) - (keep - keep // 3) :]


def replayed_headers(letter: Letter, headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers of a replay: a new task id made from the letter's, a fresh budget, no stale time, no chord."""
    kept = {name: value for name, value in headers.items() if name != LETTER and not is_brokers_own(name)}
    carried = kept.get(HEADER) or {}
    ours = {"replay": letter.replay + 1, "replay_of": letter.id, "sent": round(time.time(), 6)}
    if carried.get("key") is not None:
        ours["key"] = carried["key"]
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
