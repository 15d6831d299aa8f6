"""The command line, under Celery's own: ``celery -A proj patterns …``.

It is loaded at every call of ``celery``, so nothing in it imports what is heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
from celery.bin.base import handle_preload_options

from ._claims import claims
from ._letters import letters
from ._options import HELP

__all__ = ["patterns"]

_DOCTOR = "doctor"


class _Patterns(click.Group):
    """The doctor is loaded once it is asked for: it knows a lot."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), _DOCTOR])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == _DOCTOR:
            found: click.Command = import_module("._doctor", __name__).doctor
            return found
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Patterns, context_settings=HELP)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def patterns(ctx: click.Context, /, **_: Any) -> None:
    """Reliable tasks: what celery-patterns can do from here."""


patterns.add_command(claims)
patterns.add_command(letters)
