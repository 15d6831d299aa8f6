"""Reading dead letters and working with them: on each broker a shelf, and one selection that acts on either.

* ``_redis`` and ``_rabbitmq`` are the shelves: how letters are read, taken out and sent there. ``_entry`` is what both
  have.
* ``_filter`` says which letters are meant, ``_ledger`` which were met.
* ``_causes`` groups them, ``_correct`` corrects them, ``_replay`` and ``_canary`` send them, ``_file`` keeps them.
* ``_selection`` is what users see.
"""

from __future__ import annotations

from ._causes import Cause
from ._replay import Failure, Replayed
from ._selection import CANARY_PATIENCE, DeadLetters, dead_letters

__all__ = ["CANARY_PATIENCE", "Cause", "DeadLetters", "Failure", "Replayed", "dead_letters"]
