"""For each of the doctor's rules a project that is ill, its cure, and a proof: the failure that the rule predicts, seen."""

from __future__ import annotations

from ._ailment import Ailment
from .connections import AILMENTS as CONNECTIONS
from .limits import AILMENTS as LIMITS
from .settings import AILMENTS as SETTINGS
from .source import AILMENTS as SOURCE
from .workers import AILMENTS as WORKERS

__all__ = ["AILMENTS", "Ailment"]

AILMENTS: tuple[Ailment, ...] = (*CONNECTIONS, *WORKERS, *LIMITS, *SETTINGS, *SOURCE)
