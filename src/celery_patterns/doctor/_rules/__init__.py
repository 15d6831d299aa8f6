"""Every rule, by the group that its number begins with."""

from __future__ import annotations

from . import (
    arguments,
    bodies,
    calling,
    connections,
    differences,
    doors,
    failures,
    limits,
    made,
    names,
    policies,
    redises,
    results,
    scripts,
    sending,
    settings,
    signatures,
    workers,
)

__all__ = ["RULES"]

_ROOMS = (
    *(connections, doors, workers, differences, limits, settings, names, signatures, redises),
    *(policies, bodies, failures, made, sending, calling, scripts, arguments, results),
)
RULES = tuple(sorted((rule for room in _ROOMS for rule in room.RULES), key=lambda rule: rule.id))
