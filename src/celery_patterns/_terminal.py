"""How the commands speak: to people and to machines, and in one line when something goes wrong."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
from kombu.exceptions import OperationalError

from ._screens import visible
from .exceptions import ConfigurationError, PatternsError, UnsafeValue
from .letters import DeadLetters

if TYPE_CHECKING:
    from celery import Celery

__all__ = [
    "NOT_ALL_DONE",
    "STOPPED",
    "WRONG_USE",
    "ask",
    "console_of",
    "count_of",
    "end",
    "json_line",
    "progress",
    "told",
    "total",
    "with_rich",
]

_F = TypeVar("_F", bound=Callable[..., Any])

NOT_ALL_DONE, WRONG_USE, STOPPED = 1, 2, 3

#: Seconds that need no bar, and between two looks of one.
_SHORT, _REDRAWN = 1.0, 0.1


@contextmanager
def told(ctx: click.Context) -> Iterator[None]:
    """Whatever goes wrong is one line, without a password."""
    try:
        yield
    except (ConfigurationError, UnsafeValue) as error:
        end(str(error), WRONG_USE)
    except PatternsError as error:
        end(str(error), NOT_ALL_DONE)
    except BrokenPipeError:
        raise
    except (OperationalError, OSError) as error:
        end(_unreachable(ctx.obj.app, error), NOT_ALL_DONE)
    except Exception as error:
        if not isinstance(error, _brokers_own(ctx.obj.app)):
            raise
        end(_unreachable(ctx.obj.app, error), NOT_ALL_DONE)


def end(text: str, code: int) -> None:
    click.echo(f"Error: {visible(text)}", err=True)
    raise click.exceptions.Exit(code)


def _brokers_own(app: Celery) -> Any:
    connection = app.connection_for_read()
    return (*connection.connection_errors, *connection.channel_errors)


def _unreachable(app: Celery, error: BaseException) -> str:
    connection = app.connection_for_read()
    text = f"the broker at {connection.as_uri()}: {str(error) or type(error).__name__}"
    return text.replace(connection.password, "**") if connection.password else text


def with_rich(screen: _F) -> _F:
    """A screen that needs rich."""
    try:
        import rich  # noqa: F401, PLC0415 - an extra
    except ImportError:
        end('tables need rich: pip install "celery-patterns[cli]"; --json works without', NOT_ALL_DONE)
    return screen


def console_of(ctx: click.Context) -> Any:
    from rich.console import Console  # noqa: PLC0415 - an extra

    return Console(no_color=bool(ctx.obj.no_color) or None, highlight=False)


@contextmanager
def progress(found: DeadLetters) -> Iterator[DeadLetters]:
    """A bar on stderr, when somebody looks at it and the work is long."""
    if not sys.stderr.isatty():
        yield found
        return
    began = drawn = time.monotonic()
    with ExitStack() as stack:
        bars: list[Any] = []

        def look(looked: int, standing: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - began < _SHORT or (now - drawn < _REDRAWN and looked < standing):
                return
            drawn = now
            if not bars:
                bars.append(stack.enter_context(click.progressbar(length=standing, file=sys.stderr, show_pos=True)))
            bars[0].update(looked - bars[0].pos)

        yield found.watched(look)


def ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is there to be asked; expected --yes")
    if not click.confirm(question):
        end("nothing was done", NOT_ALL_DONE)


def count_of(number: int) -> str:
    return f"{number:,} letter{'' if number == 1 else 's'}"


def total(count: int, queue: str) -> None:
    """The last line, apart from the table, if there was one."""
    click.echo(f"{chr(10) * bool(count)}{count_of(count)} in {queue}.")


def json_line(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value))
