"""The command line, under Celery's own: ``celery -A proj patterns …``.

It is loaded at every call of ``celery``, so nothing in it imports what is heavy.
"""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import handle_preload_options

from ._claims import claims
from ._doctor import doctor
from ._letters import letters
from ._options import HELP

__all__ = ["patterns"]


@click.group(context_settings=HELP)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def patterns(ctx: click.Context, /, **_: Any) -> None:
    """Reliable tasks: what celery-patterns can do from here."""


patterns.add_command(claims)
patterns.add_command(doctor)
patterns.add_command(letters)
