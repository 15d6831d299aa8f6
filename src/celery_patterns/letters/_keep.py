"""Keeping letters in a file, deleting them, and putting them back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO, TypeVar

from .._letter import Letter
from .._x_death import is_nameless
from ..exceptions import ConfigurationError
from ._file import kept_in, write_lines, written_whole
from ._flaws import letter_in
from ._ledger import Ledger
from ._put_back import put_back
from ._undisturbed import between_letters, undisturbed
from ._walk import Walk, ledger_in

__all__ = ["exported", "purged", "restored"]

_T = TypeVar("_T")


def exported(walk: Walk, file: str | PathLike[str] | TextIO) -> int:
    """Write the letters to a file, and say how many."""
    with undisturbed(), ExitStack() as stack:
        ledger = ledger_in(stack)
        stream: Any = file
        if isinstance(file, str | PathLike):
            stream = stack.enter_context(written_whole(Path(fspath(file))))
        with ExitStack() as reading:
            return write_lines(_each(walk.entries(walk.open(reading), ledger)), stream)


def purged(walk: Walk, kept: str | PathLike[str] | None, on_each: Callable[[Letter], object] | None) -> int:
    """Delete the letters, of which only those that stand in the file, and say how many."""
    with undisturbed(), ExitStack() as stack:
        ledger, keep, removed = ledger_in(stack), ledger_in(stack), ledger_in(stack)
        for one in _each(() if kept is None else kept_in(Path(fspath(kept)))):
            keep.put(one.id, str(_number(keep, one.id) + 1))
        shelf, count = walk.open(stack), 0
        for entry in _each(walk.entries(shelf, ledger, copies=True)):
            letter, nameless = entry.letter, is_nameless(entry.letter)
            room, before = _number(keep, letter.id), _number(removed, letter.id)
            if kept is not None and (not room or (nameless and before >= room)):
                continue
            if shelf.remove(entry):
                removed.put(letter.id, str(before + 1))
                if nameless or not before:
                    count += 1
                    if on_each is not None:
                        on_each(letter)
    return count


def _number(ledger: Ledger, letter_id: str) -> int:
    return int(ledger.get(letter_id) or 0)


def restored(walk: Walk, file: str | PathLike[str] | TextIO, on_each: Callable[[str, bool], object] | None) -> int:
    """Put letters of a file back, and say how many."""
    with ExitStack() as stack:
        # What is typed may be waited for, and is not held off.
        source = Path(fspath(file)) if isinstance(file, str | PathLike) else _copied(file, stack)
        stack.enter_context(undisturbed())
        _expect_letters(source)
        there = ledger_in(stack)
        with ExitStack() as reading:
            for entry in _each(walk.entries(walk.open(reading), ledger_in(stack))):
                there.put(entry.letter.id, str(_number(there, entry.letter.id) + 1))
        shelf, count = walk.open(stack), 0
        for kept in _each(kept_in(source)):
            letter, standing = letter_in(kept), _number(there, kept.id)
            missing = not standing
            if missing:
                shelf.forget(kept.id)
                put_back(walk.app, walk.queue, kept)
                count += 1
            if letter is not None and is_nameless(letter):
                there.put(kept.id, str(max(0, standing - 1)))  # each that stands there is one of the file's equals
            elif missing:
                there.put(kept.id, "1")
            if on_each is not None:
                on_each(kept.id, missing)
    return count


def _each(found: Iterable[_T]) -> Iterator[_T]:
    for one in found:
        between_letters()
        yield one


def _copied(stream: TextIO, stack: ExitStack) -> TextIO:
    """What can be read twice: all of it is checked before the first letter is put back."""
    copy = stack.enter_context(TemporaryFile("w+", encoding="utf-8"))  # noqa: SIM115 - it is one
    try:
        shutil.copyfileobj(stream, copy)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the file cannot be read: {error}; nothing was imported") from None
    return copy


def _expect_letters(source: Path | TextIO) -> None:
    try:
        for _ in _each(kept_in(source)):
            continue
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; nothing was imported") from None
