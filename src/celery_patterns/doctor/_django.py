"""The examination as one of Django's system checks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._examine import Profile, examine

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["system_check"]


def system_check(
    app: Celery,
    *,
    offline: bool = True,
    profile: Profile = "development",
    ignore: Mapping[str, str] | Collection[str] = (),
    source: str | Path | Iterable[str | Path] | None = None,
    timeout: float = 5.0,
) -> Callable[..., list[Any]]:
    """A check for ``django.core.checks.register()``.

    Each finding is a message of Django's, with the id ``celery_patterns.CP301``, which ``SILENCED_SYSTEM_CHECKS`` takes too:
    an error, a warning, or a hint as an ``Info``.

    Args:
        app: Your Celery app.
        offline: Read the settings only; the default here, since Django checks at each start.
        profile: As for :func:`examine`.
        ignore: As for :func:`examine`.
        source: As for :func:`examine`.
        timeout: As for :func:`examine`, in seconds; 5 by default.

    Raises:
        ConfigurationError: When Django calls the check, and an argument is wrong.
    """
    from django.core import checks  # noqa: PLC0415 - not ours to bring

    levels = {"error": checks.ERROR, "warning": checks.WARNING, "hint": checks.INFO}

    examining = threading.local()

    def check(app_configs: Any = None, **_: Any) -> list[Any]:  # noqa: ARG001 - Django's own
        # As Celery imports the app's modules, it lets Django check itself, and so comes here again.
        if getattr(examining, "now", False):
            return []
        examining.now = True
        try:
            found = examine(
                app, offline=offline, profile=profile, ignore=ignore, source=source, timeout=timeout
            ).findings
        finally:
            examining.now = False
        return [
            checks.CheckMessage(
                levels[one.severity],
                f"{one.where}: {one.what}. {one.happens}",
                hint=one.cure,
                id=f"celery_patterns.{one.id}",
            )
            for one in found
        ]

    return check
