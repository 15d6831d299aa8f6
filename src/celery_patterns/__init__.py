"""Reliable Celery tasks: retries, idempotency keys, dead letters, strict JSON and structured logs.

Imports point down, and a test walks them:

1. words: ``exceptions``, ``typing``
2. what a call, a payload and a key are: ``_call``, ``_codec``, ``_keys``, ``_events``, ``_publish``, ``_queues``
3. walls and plumbing: ``stores``, ``_equipment``, ``_plan``, ``_republish``, ``_letter``
4. five rooms with no doors between them: ``_retry``, ``_idempotent``, ``_dead_letter``, ``_logged``, ``_strict_json``
5. Celery's doors: ``_fit``, ``_task``, ``letters``, ``worker``, ``_app``
6. this shop window
"""

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
