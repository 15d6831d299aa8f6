"""Sending a running message again: its next attempt, or a copy that waits.

Both go through the task's own signature from its request, so that chord, chain, links, headers and stamps stay whole,
and both are made from the arguments as they were received.
"""

from __future__ import annotations

import copy
import logging
import math
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject, Retry, TaskPredicate
from celery.utils.saferepr import saferepr
from kombu import serialization
from kombu.exceptions import EncodeError, SerializerNotInstalled
from kombu.serialization import registry

from ._codec import dumps_arguments
from ._equipment import equipment_of
from ._events import emit
from ._frame import FRAME, size_of
from ._history import remembering
from ._message import HEADER, KEPT, OWNER, is_brokers_own
from ._publish import CONFIRM
from ._queues import queue_of
from .exceptions import ClaimLost, PublishFailed, StoreUnavailable, UnsafeValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery.canvas import Signature

    from ._call import Call, Lease, Proceed

__all__ = [
    "STRICT",
    "carried_headers",
    "message_serializer",
    "next_attempt",
    "publish_asked",
    "send_waiting_copy",
    "whole_seconds",
]

#: The name under which kombu knows our encoder.
STRICT = "celery-patterns-json"

# A message's own headers may nearly fill a frame: what is remembered of the attempts is then not told.
_OTHER_HEADERS = 8_000


def whole_seconds(wait: float) -> int:
    """A countdown that every broker can carry: 0, or whole seconds, never less than asked for.

    A fraction below one second cannot be published to a quorum queue with native delayed delivery.
    """
    return max(0, math.ceil(wait))


def carried_headers(call: Call, extra: Mapping[str, Any] | None = None, **ours: Any) -> dict[str, Any]:
    """The message's own headers, without the broker's notes, and with what the patterns carry."""
    headers = {**(call.request.headers or {}), **(extra or {})}
    return {
        # The body was unpacked when it was received.
        **{name: value for name, value in headers.items() if not is_brokers_own(name) and name != "compression"},
        HEADER: {**call.header, **ours},
    }


def message_serializer(call: Call) -> str:
    """The serializer that carries the arguments as they were received.

    They were accepted once, perhaps from a looser producer or in another content type than the task's own: to refuse
    them now would lose an attempt or a letter.
    """
    own = "json" if call.instance.serializer == STRICT else call.instance.serializer
    came_as = registry.type_to_name.get((call.request.properties or {}).get("content_type"))
    accepted = [registry.type_to_name.get(kind, kind) for kind in call.app.conf.accept_content]
    names = [came_as or own, own, *accepted]
    if came_as is None and set(names) != {"json"} and not _json_carries(call):
        # Redis does not tell what they came as. JSON would take them, and change them; so would others.
        names.sort(key=lambda name: (not _carries(name, call), name != "pickle"))
    for name in names:
        try:
            serialization.dumps([list(call.received_args), call.received_kwargs], name)
        except (EncodeError, SerializerNotInstalled):
            continue
        return str(name)
    return str(own)


def _carries(name: str, call: Call) -> bool:
    arguments = [list(call.received_args), call.received_kwargs]
    try:
        kind, encoding, body = serialization.dumps(arguments, name)
        return repr(serialization.loads(body, kind, encoding, accept=[kind])) == repr(arguments)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - what cannot even be shown is not known to come back
        return False


def _json_carries(call: Call) -> bool:
    try:
        dumps_arguments(call.received_args, call.received_kwargs)
    except UnsafeValue:
        return False
    return True


def next_attempt(call: Call, wait: float, error: BaseException) -> Retry:
    """The ``Retry`` that asks for the next attempt; it is published when the call is over."""
    countdown = whole_seconds(wait)
    signature = call.instance.signature_from_request(
        call.request,
        call.received_args,
        call.received_kwargs,
        countdown=countdown,
        retries=(call.request.retries or 0) + 1,
    )
    call.asked = Retry(exc=error, when=countdown, is_eager=call.eager, sig=signature)
    return call.asked


def publish_asked(proceed: Proceed, call: Call) -> Any:
    """Publish the retry that the body or the policy asked for, once the body is over and before the key is freed."""
    while True:
        try:
            result = proceed(call)
        except Retry as retry:
            if retry.sig is None:  # raised by hand: there is nothing to publish
                raise
            if call.eager:
                _again(call, retry)
                continue
            _send_next(call, retry)
            raise
        except Ignore:
            if call.asked is not None and not call.eager:
                with suppress(ClaimLost):  # what the body did instead stands
                    _send_next(call, call.asked)
            raise
        except Exception as error:
            if call.asked is None or call.eager:
                raise
            # It asked with throw=False, and failed then, or rejected: there is a next attempt, so this is not the end.
            asked = call.asked
            asked.__cause__ = error
            _send_next(call, asked)
            raise asked from error
        if call.asked is not None and not call.eager:  # asked with throw=False, or caught its own Retry
            _send_next(call, call.asked)
        return result


def _again(call: Call, retry: Retry) -> None:
    """Eager mode: the next attempt is made here, at once and without a broker."""
    call.again(retry.sig.args, retry.sig.kwargs)
    call.request.retries = (call.request.retries or 0) + 1


def _send_next(call: Call, retry: Retry) -> None:
    if call.lease is not None and _is_surely_lost(call.lease):
        raise ClaimLost(f"{call.task}: another run has its key by now, and the next attempt is for that one to make")
    signature = retry.sig
    cause = retry.__cause__ or retry.__context__ or retry.exc
    countdown = signature.options.get("countdown")
    ours = {
        "started": call.first_started,
        "waited": call.header.get("waited", 0) + (countdown or 0),
        **remembering(call.header, call.attempt, call.started, cause),
        "waiting": None,
        "looks": 0,
        "patient": None,
        # It exists only when this body is over, and need not wait for a release that a kill may swallow.
        "asked_by": [call.lease.owner] if call.lease is not None else None,
    }
    try:
        _send(call, signature, ours)
    except Exception as error:  # noqa: BLE001 - whatever stopped it, the attempt must not be lost
        _not_sent(call, cause, error)
    else:
        call.keep()
        # The next attempt stands: a soft time limit that strikes while the log is written must not make it a failure.
        with suppress(SoftTimeLimitExceeded):
            emit(logging.INFO, "retry_scheduled", call, error=cause, countdown=countdown)


def _is_surely_lost(lease: Lease) -> bool:
    try:
        return lease.is_lost()
    except StoreUnavailable:
        return False  # then the next attempt stands for both: it has the key of this run, and of no other


def _not_sent(call: Call, cause: BaseException | None, error: Exception) -> None:
    """Never a loss: back into the queue where that can help and is still possible, else a final failure."""
    back = call.late and isinstance(error, PublishFailed) and error.transient
    emit(logging.CRITICAL, "retry_not_published", call, error=error, requeued=back)
    if back:
        raise Reject("the next attempt could not be published; the message goes back to its queue", requeue=True)
    raise cause if isinstance(cause, Exception) and not isinstance(cause, TaskPredicate) else error


def send_waiting_copy(call: Call, wait: timedelta, **ours: Any) -> None:
    """Publish the message once more for the same attempt, then let go of this one.

    Args:
        call: The running call.
        wait: How long the copy waits.
        ours: What the copy is to know of this delivery.

    Raises:
        Ignore: When the copy stands: the work was handed over.
        Reject: When it could not be published; the message goes back to its queue.
    """
    countdown = max(1, whole_seconds(wait.total_seconds()))
    signature = call.instance.signature_from_request(
        call.request,
        call.received_args,
        call.received_kwargs,
        countdown=countdown,
        retries=call.request.retries or 0,
    )
    try:
        _send(call, signature, ours)
    except PublishFailed as error:
        emit(logging.CRITICAL, "waiting_copy_not_published", call, error=error, requeued=call.late)
        if not call.late:
            raise
        raise Reject(
            "the waiting copy could not be published; the message goes back to its queue", requeue=True
        ) from None
    raise Ignore("waiting for another run of the same key")


def _show_no_more(call: Call, options: dict[str, Any], *, unchanged: bool) -> None:
    """Keep what the sender chose to show of the arguments, which Celery would write anew for each attempt."""
    limit = call.app.amqp.argsrepr_maxsize
    args, kwargs = call.received_args, call.received_kwargs
    # A sender may pass a list for the tuple.
    plain = {
        "argsrepr": (saferepr(args, limit), saferepr(list(args), limit)),
        "kwargsrepr": (saferepr(kwargs, limit),),
    }
    for name, texts in plain.items():
        shown = call.request.__dict__.get(name)
        if isinstance(shown, str) and (unchanged or shown not in texts):
            options.setdefault(name, shown)


def _headers(call: Call, asked: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> dict[str, Any]:
    headers = carried_headers(call, asked, first_sent=call.first_sent, **ours)
    if size_of(headers) > FRAME - _OTHER_HEADERS:
        headers[HEADER] = {name: value for name, value in headers[HEADER].items() if name not in ("history", "errors")}
    return headers


def _send(call: Call, signature: Signature, ours: Mapping[str, Any]) -> None:
    options = signature.options
    options["headers"] = _headers(call, options.get("headers"), ours)
    for name in ("redelivered", KEPT, OWNER):  # of this delivery only
        options.pop(name, None)
    queue = (
        queue_of(call.app, *call.came_by) if "queue" not in options else None
    )  # self.retry(queue=…) goes where it says
    if queue is not None:
        # By exchange and key alone, Celery would take a delayed delivery of RabbitMQ's to the app's default queue.
        options["queue"] = same = copy.copy(queue)
        same.routing_key = call.queue
        for name in ("exchange", "routing_key", "exchange_type"):
            options.pop(name, None)
    if options.get("countdown") is not None:
        options["countdown"] = whole_seconds(options["countdown"])
    unchanged = tuple(signature.args) == call.received_args and signature.kwargs == call.received_kwargs
    if unchanged:
        options["serializer"] = message_serializer(call)
    _show_no_more(call, options, unchanged=unchanged)

    def publish(producer: Any) -> None:
        more = dict(CONFIRM)
        if queue is not None:
            # The queue is there, and is the user's: no binding of ours is added. But kombu's own brokers, Redis among
            # them, know the type of an exchange on this connection only when it was declared on it.
            on_rabbit = producer.connection.transport.driver_type == "amqp"
            more["declare"] = [] if on_rabbit else [queue.exchange]
        signature.apply_async(producer=producer, add_to_parent=False, **more)

    equipment_of(call.app).publisher.publish(publish)
