"""Reading dead letters and working with them: on each broker a shelf, and one selection that acts on either.

* ``_redis`` and ``_rabbitmq`` are the shelves: how letters are read, taken out and sent there. ``_entry`` is what both
  have. On RabbitMQ ``_link`` is what letters are held on, and ``_dispatch`` sends them; a ``_flight`` is not confirmed yet.
* ``_walk`` goes through a shelf: ``_filter`` says which letters are meant, ``_ledger`` which were met.
* ``_causes`` groups them. ``_replay`` sends one, ``_correct`` and ``_typed`` correct it, ``_rounds`` and ``_canary`` say
  in which order. ``_keep``, ``_file`` and ``_put_back`` keep them. ``_undisturbed`` holds Ctrl-C off.
* ``_known`` says which queues there are. ``_selection`` is what users see.
"""

from __future__ import annotations

from ._causes import Cause
from ._file import expect_new
from ._known import dead_queues, letters_among, named_queues, refuse_consumed, standing
from ._replay import Failure, Replayed
from ._selection import CANARY_TIMEOUT, DeadLetters, dead_letters
from ._typed import Typed

__all__ = [
    "CANARY_TIMEOUT",
    "Cause",
    "DeadLetters",
    "Failure",
    "Replayed",
    "Typed",
    "dead_letters",
    "dead_queues",
    "expect_new",
    "letters_among",
    "named_queues",
    "refuse_consumed",
    "standing",
]
