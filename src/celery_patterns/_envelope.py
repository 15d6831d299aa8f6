"""Room for a letter's header: where the message's own headers leave none, the largest of them travel in its body."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from ._frame import size_of
from ._letter import LETTER, Letter, header_of, read_letter

if TYPE_CHECKING:
    from kombu.message import Message

__all__ = ["WRAPPED", "fitted", "unwrapped"]

#: The content type of a letter whose body is JSON that holds the message's own body, and headers that had no room.
WRAPPED = "application/vnd.celery-patterns.letter+json"


def fitted(message: dict[str, Any], room: int | None) -> dict[str, Any]:
    """A letter's message that a connection can carry: its letter is as long as there is room for.

    Args:
        message: The arguments of ``Producer.publish``.
        room: The bytes that all headers may have; None for no limit.
    """
    headers = message["headers"]
    if room is None or size_of(headers) <= room:
        return message
    letter = read_letter(headers)
    assert letter is not None
    text = header_of(letter, room - size_of({**headers, LETTER: ""}))
    return _wrapped(message, letter, room) if text is None else {**message, "headers": {**headers, LETTER: text}}


def _wrapped(message: dict[str, Any], letter: Letter, room: int) -> dict[str, Any]:
    stay, moved = {**message["headers"], LETTER: ""}, {}
    for name in sorted(stay, key=lambda name: -size_of(stay[name])):
        if size_of(stay) <= room // 2:
            break
        if name != LETTER and isinstance(name, str) and _is_json(stay[name]):
            moved[name] = stay.pop(name)
    # Where even this is too much, the broker is to say so.
    stay[LETTER] = header_of(letter, room - size_of(stay)) or header_of(letter)
    told = {"headers": moved, "content_type": message["content_type"], "content_encoding": message["content_encoding"]}
    return {
        **message,
        "headers": stay,
        "content_type": WRAPPED,
        "content_encoding": "utf-8",
        "body": json.dumps({**told, **_told(message["body"])}).encode(),
    }


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def _told(body: Any) -> dict[str, str]:
    data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)
    try:
        return {"body": data.decode(), "body_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(data).decode(), "body_encoding": "base64"}


def unwrapped(message: Message) -> Message:
    """The message with its own body and headers, if they were moved; else as it is."""
    if message.content_type != WRAPPED:
        return message
    try:
        told = json.loads(message.body or b"")
        data = told["body"].encode()
        body = base64.b64decode(data) if told["body_encoding"] == "base64" else data
        headers = {**told["headers"], **message.headers}
        content_type, content_encoding = told["content_type"], told["content_encoding"]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return message  # not written by us
    message.body, message.headers = body, headers
    message.content_type, message.content_encoding = content_type, content_encoding
    return message
