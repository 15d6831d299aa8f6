"""Reliable Celery tasks: retries, idempotency keys, dead letters, strict JSON and structured logs."""

from __future__ import annotations

from . import exceptions, stores, typing
from ._app import equip, use_patterns, use_store, use_strict_json, use_structlog
from ._call import Call, Claim, current_call, current_claim
from ._dead_letter import dead_letter, task_dead_lettered
from ._idempotent import idempotent
from ._letter import Letter
from ._logged import logged
from ._plan import Pattern, without
from ._retry import retry
from ._slots import latest_slot
from ._task import PatternTask, ReliableTask
from .letters import Cause, DeadLetters, Failure, Replayed, dead_letters

__all__ = [
    "Call",
    "Cause",
    "Claim",
    "DeadLetters",
    "Failure",
    "Letter",
    "Pattern",
    "PatternTask",
    "ReliableTask",
    "Replayed",
    "current_call",
    "current_claim",
    "dead_letter",
    "dead_letters",
    "equip",
    "exceptions",
    "idempotent",
    "latest_slot",
    "logged",
    "retry",
    "stores",
    "task_dead_lettered",
    "typing",
    "use_patterns",
    "use_store",
    "use_strict_json",
    "use_structlog",
    "without",
]
