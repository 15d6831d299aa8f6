"""Every rule, by the group that its number begins with."""

from __future__ import annotations

from . import (
    arguments,
    bodies,
    connections,
    doors,
    limits,
    made,
    names,
    redises,
    results,
    sending,
    settings,
    signatures,
    workers,
)

__all__ = ["RULES"]

RULES = tuple(
    sorted(
        (
            *(*connections.RULES, *doors.RULES, *workers.RULES, *limits.RULES),
            *(*settings.RULES, *names.RULES, *signatures.RULES, *redises.RULES, *bodies.RULES, *made.RULES),
            *(*sending.RULES, *arguments.RULES, *results.RULES),
        ),
        key=lambda rule: rule.id,
    )
)
