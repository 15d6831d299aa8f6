"""Every rule, by the group that its number begins with."""

from __future__ import annotations

from . import connections, limits, settings, source, workers

__all__ = ["RULES"]

RULES = (*connections.RULES, *workers.RULES, *limits.RULES, *settings.RULES, *source.RULES)
