"""The strict encoder as a kombu serializer: checked at ``.delay()``, read by any worker."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kombu.exceptions import EncodeError
from kombu.serialization import registry
from kombu.utils import json as kombu_json

from . import _codec
from ._republish import STRICT
from .exceptions import UnsafeValue

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["adopt", "register", "unwrapped"]

#: The name of the encoder for Celery's own tasks.
CELERYS_OWN = "celery-patterns-json-canvas"


_EMBED = frozenset({"callbacks", "errbacks", "chain", "chord"})


def _encode(body: Any, *, loose: bool = False) -> bytes:
    """Encode a task's message body strictly; whatever else goes by this serializer is Celery's own affair."""
    if isinstance(body, tuple) and len(body) == len(("args", "kwargs")) and isinstance(body[1], Mapping | None):
        # Eager mode passes the arguments through the serializer, without the signatures of a message.
        return _codec.dumps_arguments(body[0] or (), body[1] or {}, loose=loose)
    if (
        isinstance(body, tuple | list)
        and len(body) == len(("args", "kwargs", "embed"))
        and type(body[2]) is dict
        and body[2].keys() <= _EMBED
    ):
        args, kwargs, embed = body
        return _codec.dumps_message(args, kwargs, embed, loose=loose)
    # Remote control and events use the app's task serializer too.
    return str(kombu_json.dumps(body)).encode()


def register() -> None:
    """Make the encoder known to kombu, as an encoder only.

    The body stays ``application/json`` and kombu's own decoder reads it, so a worker without this library reads it too.
    """
    for name, encode in ((STRICT, _encode), (CELERYS_OWN, functools.partial(_encode, loose=True))):
        registry.register(name, encode, None, content_type="application/json", content_encoding="utf-8")
    registry.type_to_name["application/json"] = "json"


def adopt(app: Celery) -> None:
    """Let Celery's own tasks, whose arguments are signatures and tuples of results, be sent by the loose form."""
    for name, task in app.tasks.items():
        if name.startswith("celery.") and task.serializer == STRICT:
            task.serializer = CELERYS_OWN


def unwrapped(error: EncodeError, task: str) -> UnsafeValue | None:
    """What our encoder said, out of the wrapper that kombu puts around it, with the task's name."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UnsafeValue):
        cause = cause.__cause__ or cause.__context__
    return None if cause is None else UnsafeValue(cause.path, cause.problem, cause.task or task)
