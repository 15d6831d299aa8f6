"""Giving back the key of a run that can no longer do so itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .._equipment import equipment_of
from .._events import announce, type_name
from .._idempotent import idempotent
from .._keys import name_in_store
from .._message import HEADER, OWNER
from .._plan import worn
from ..exceptions import StoreUnavailable
from ..typing import Attempt, Ended

if TYPE_CHECKING:
    from celery.worker.request import Request

__all__ = ["free_lost_key"]

logger = logging.getLogger("celery_patterns")


def free_lost_key(request: Request, *, failed: bool = True) -> None:
    """Free the key that a lost run held.

    The run is known by the owner that its delivery was given; a key that is done, or that another run has taken since, is
    left as it is. A key that code of the user's has a part in is left to its lease: that may be what hung.

    Args:
        request: The request of that run.
        failed: Whether its letter stands, and it is remembered that its attempt failed; else it is to run again.
    """
    pattern = worn(request.task, idempotent)
    owner = request.delivery_info.get(OWNER)
    if pattern is None or owner is None:
        return
    try:
        key = _key_of(pattern, request)
        if key is not None:
            attempt, ended = Attempt("", 0, owner), Ended(failed=True) if failed else None
            name = name_in_store(request.task.name, key)
            equipment_of(request.app).store.release(name, attempt, None, ended=ended, ttl=pattern.ttl)
    except StoreUnavailable as error:
        told = {"task": request.task.name, "messaging.message.id": request.id, "error.type": type_name(error)}
        announce(logging.ERROR, "claim_not_released", {**told, "reason": str(error)})
    except Exception:
        logger.exception("the key of a lost run could not be made; it is free when its lease is over")


def _key_of(pattern: idempotent, request: Request) -> str | None:
    carried = request.request_dict.get(HEADER)
    given = carried.get("key") if isinstance(carried, dict) else None
    task = request.task
    return pattern.key_without_code(task.name, task.plan.terms.bound, tuple(request.args), request.kwargs, given)
