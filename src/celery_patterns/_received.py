"""Arguments as they were received, where the body cannot reach them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any
from uuid import UUID

__all__ = ["ATOMS", "as_sent", "received"]

#: Types of values that cannot change.
ATOMS = frozenset(
    {str, int, float, bool, type(None), bytes, datetime, date, time_of_day, timedelta, Decimal, UUID},
)


def received(value: Any, copied: Callable[[Any], Any] = copy.deepcopy) -> Any:
    """A copy of arguments that the body cannot reach: what can change is new, what cannot is shared.

    Args:
        value: The arguments.
        copied: What is done with an object that is no value of JSON's.
    """
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is list:
        return [item if type(item) in ATOMS else received(item, copied) for item in value]
    if kind is dict:
        return {name: item if type(item) in ATOMS else received(item, copied) for name, item in value.items()}
    if kind is tuple:
        for item in value:
            if type(item) not in ATOMS:
                break
        else:
            return value
        return tuple([item if type(item) in ATOMS else received(item, copied) for item in value])
    return copied(value)


def as_sent(task: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A caller's arguments as a worker receives them: of models, what a task with ``pydantic=True`` sends them as."""
    dump = getattr(task, "_dump_pydantic_arguments", None)
    return (args, kwargs) if dump is None else dump(args, kwargs)
