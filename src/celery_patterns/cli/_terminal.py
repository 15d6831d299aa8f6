"""How the commands speak: to people and to machines, and in one line when something goes wrong."""

from __future__ import annotations

import errno
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click
from kombu.exceptions import OperationalError

from ..exceptions import ConfigurationError, PatternsError, UnsafeValue
from ._screens import visible

if TYPE_CHECKING:
    from celery import Celery

__all__ = [
    "INTERRUPTED",
    "NOT_ALL_DONE",
    "STOPPED",
    "WRONG_USE",
    "Bar",
    "ask",
    "bar_of",
    "brokers_own",
    "console_of",
    "count_of",
    "end",
    "json_line",
    "say",
    "stoppable",
    "told",
    "unreachable",
    "with_rich",
]

_F = TypeVar("_F", bound=Callable[..., Any])

NOT_ALL_DONE, WRONG_USE, STOPPED, INTERRUPTED = 1, 2, 3, 130

#: What is no broker's fault.
_DISKS_OWN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})

#: Seconds that need no bar, and between two looks of one.
_SHORT, _REDRAWN = 1.0, 0.1


@contextmanager
def told(ctx: click.Context) -> Iterator[None]:
    """Whatever goes wrong is one line, without a password."""
    try:
        with _ended_by_any():
            yield
    except (ConfigurationError, UnsafeValue) as error:
        end(str(error), WRONG_USE)
    except PatternsError as error:
        end(str(error), NOT_ALL_DONE)
    except (BrokenPipeError, click.exceptions.Exit, click.ClickException):
        raise
    except KeyboardInterrupt:
        say("Interrupted. Nothing was changed.", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except (OperationalError, OSError) as error:
        own = isinstance(error, OSError) and error.errno in _DISKS_OWN
        end(str(error) if own else unreachable(ctx.obj.app, error), NOT_ALL_DONE)
    except Exception as error:
        if not isinstance(error, brokers_own(ctx.obj.app)):
            raise
        end(unreachable(ctx.obj.app, error), NOT_ALL_DONE)


@contextmanager
def _ended_by_any() -> Iterator[None]:
    """The signals of a container or a session that ends are heard as Ctrl-C is."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    heard: list[signal.Signals] = []
    if not ignored and threading.current_thread() is threading.main_thread():
        both = (signal.SIGTERM, signal.SIGHUP)
        heard = [number for number in both if signal.getsignal(number) is signal.SIG_DFL]
    for number in heard:
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def stoppable(said: Callable[[str], str], begun: Callable[[], object] | None = None) -> Iterator[None]:
    """However the command ends before its work does, a line says how far it came.

    Args:
        said: That line; given what ended it.
        begun: Whether anything was done yet: an error that comes before is told by itself. Where that cannot be known, it is
            an error of ours.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"Interrupted: {said('interrupted')}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, PatternsError) if begun is None else not begun():
            raise
        say(f"Not finished: {said(type(error).__name__)}", err=True)
        if isinstance(error, PatternsError):
            end(str(error), NOT_ALL_DONE)
        raise


def end(text: str, code: int) -> NoReturn:
    say(f"Error: {visible(text)}", err=True)
    raise click.exceptions.Exit(code)


def say(text: str, *, err: bool = False) -> None:
    """A line, in which a stream that cannot write a character shows it as Python writes it."""
    stream = sys.stderr if err else sys.stdout
    encoding = stream.encoding or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)


def brokers_own(app: Celery) -> Any:
    """What is raised when the broker cannot be used."""
    connection = app.connection_for_write()
    return (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)


def unreachable(app: Celery, error: BaseException) -> str:
    """That it cannot be used, where it is and why, without its password."""
    connection = app.connection_for_write()
    text = str(error) or type(error).__name__
    said = text.replace(connection.password, "**") if connection.password else text
    where = connection.as_uri() if connection.password else connection.as_uri().replace(":**@", "")
    return f"the broker at {where} cannot be used: {said.rstrip('.')}. Does it run, and is this the app's broker_url?"


def with_rich(screen: _F) -> _F:
    """A screen that needs rich."""
    try:
        import rich  # noqa: F401, PLC0415 - an extra
    except ImportError:
        end('tables need rich; run: pip install "celery-patterns[cli]"; --json works without', WRONG_USE)
    return screen


def console_of(ctx: click.Context) -> Any:
    from rich.console import Console  # noqa: PLC0415 - an extra

    _forgiving(sys.stdout)
    return Console(no_color=bool(ctx.obj.no_color) or None, highlight=False)


def _forgiving(stream: TextIO) -> None:
    """Let rich, too, write any character to a stream of any encoding."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


class Bar:
    """A bar on stderr, when somebody looks at it and the work is long.

    Args:
        label: What it counts; None where it is never shown.
    """

    def __init__(self, label: str | None) -> None:
        self._label = label
        self._shown = label is not None and sys.stderr.isatty()
        self._began = self._drawn = time.monotonic()
        self._bar: Any = None
        #: How many there are, as far as is known.
        self.length = 0

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def look(self, done: int, length: int) -> None:
        """So many are done, of so many."""
        self.length = length
        now = time.monotonic()
        if not self._shown or now - self._began < _SHORT or (now - self._drawn < _REDRAWN and done < length):
            return
        self._drawn = now
        if self._bar is None:
            self._bar = click.progressbar(length=length, label=self._label, file=sys.stderr, show_pos=True)
            self._bar.__enter__()
        self._bar.update(done - self._bar.pos)


@contextmanager
def bar_of(label: str) -> Iterator[Bar]:
    """A bar until the block is done."""
    with closing(Bar(label)) as bar:
        yield bar


def ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is there to be asked. Pass --yes")
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        say("\nNothing was done.", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    if not agreed:
        say("Nothing was done.", err=True)
        raise click.exceptions.Exit(NOT_ALL_DONE)


def count_of(number: int) -> str:
    return f"{number:,} letter{'' if number == 1 else 's'}"


def json_line(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value))
