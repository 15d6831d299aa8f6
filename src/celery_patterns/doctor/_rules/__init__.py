"""Every rule, by the group that its number begins with."""

from __future__ import annotations

from . import bodies, connections, doors, limits, names, redises, sending, settings, signatures, workers

__all__ = ["RULES"]

RULES = tuple(
    sorted(
        (
            *(*connections.RULES, *doors.RULES, *workers.RULES, *limits.RULES),
            *(*settings.RULES, *names.RULES, *signatures.RULES, *redises.RULES, *bodies.RULES, *sending.RULES),
        ),
        key=lambda rule: rule.id,
    )
)
