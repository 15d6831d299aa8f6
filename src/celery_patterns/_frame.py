"""The room for headers: all those of one AMQP message share one frame, and a larger one ends the connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kombu.connection import Connection

__all__ = ["FRAME", "room_in", "size_of"]

#: Bytes of a frame, unless broker and client agree on another size.
FRAME = 131_072

# For the frame's own bytes, the other properties, and what the broker adds when it buries or delivers the message again.
_RESERVED = 3_000
# Of the smallest frames, which hold little beside.
_RESERVED_PART = 8

_NUMBER = 9


def room_in(connection: Connection) -> int | None:
    """The bytes that a message's headers may have on this connection; None where there is no such limit."""
    if connection.transport.driver_type != "amqp":
        return None
    agreed = getattr(connection.connection, "frame_max", FRAME) or FRAME
    return int(agreed - min(_RESERVED, agreed // _RESERVED_PART))


def size_of(value: Any) -> int:
    """At least the bytes that a header's value, or a table of headers, has on the wire."""
    if isinstance(value, str):
        return 5 + (len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass")))
    if isinstance(value, bytes):
        return 5 + len(value)
    if isinstance(value, Mapping):
        return 5 + sum(size_of(name) + size_of(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return 5 + sum(map(size_of, value))
    return _NUMBER
