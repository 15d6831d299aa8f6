"""What the letters died of: a fingerprint of each traceback, and how many share it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .._keys import digest
from .._letter import Letter

__all__ = ["Cause", "causes_of", "fingerprint_of"]

#: The innermost frames are the bug; a long traceback has its middle left out, and a deep recursion no fixed depth.
_INNERMOST = 20

#: So many characters of an error's text.
_SAID = 200

_FRAME = re.compile(r'^ *File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>.+)$')
_MARKS = re.compile(r"^[\s~^]*$")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")

#: Where an error is noticed and nothing can be mended: this library, Celery's own, and the standard library.
_OURS = re.compile(r"(^|/)celery_patterns/|/(site|dist)-packages/(celery|billiard|kombu)/")
_STANDARD = re.compile(r"^<frozen |/lib(64)?/(python|pypy)[\d.]+t?/|/python\d+\.zip/|/python\d+/lib/", re.IGNORECASE)
_INSTALLED = re.compile(r"/(site|dist)-packages/")


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Letters of one task that died in one place of one type of error.

    Attributes:
        task: The task's name; None where the messages do not tell.
        error: The error's type, with its module.
        reason: The reason of the first of them.
        fingerprint: 12 hexadecimal digits of the task, the type of error, and the traceback's innermost 20 frames, each by
            its file's name and folder, its function and its line of code: equal for other arguments, other releases and
            moved lines, and another one for another place. Where the traceback has no place, the reason stands for the
            frames.
        place: The innermost frame that is neither in this library, Celery, billiard, kombu nor the standard library, for
            example ``shop/orders.py, in charge``. Empty where there is none, as when the body did not run.
        count: How many letters.
        first_died: When the first of them died, in seconds since the epoch.
        last_died: When the last of them died.
        example: The id of the first of them.
        message: What its error said, the first 200 characters.
    """

    task: str | None
    error: str
    reason: str
    fingerprint: str
    place: str
    count: int
    first_died: float
    last_died: float
    example: str
    message: str


@dataclass(frozen=True)
class _Frame:
    file: str
    name: str
    code: str

    def __str__(self) -> str:
        return f"{self.place}: {self.code}"

    @property
    def place(self) -> str:
        """The file and its folder, for a release may lie in a folder of its own; and the function."""
        return f"{'/'.join(self.file.split('/')[-2:])}, in {self.name}"

    @property
    def is_users(self) -> bool:
        standard = _STANDARD.search(self.file) and not _INSTALLED.search(self.file)
        return not (standard or _OURS.search(self.file))


def causes_of(letters: Iterable[Letter]) -> list[Cause]:
    """The causes, the most frequent first. One is kept for each, and no letter."""
    found: dict[str, Cause] = {}
    for letter in letters:
        cause = _cause_of(letter)
        known = found.get(cause.fingerprint)
        found[cause.fingerprint] = cause if known is None else _both(known, cause.first_died)
    return sorted(found.values(), key=lambda cause: (-cause.count, cause.first_died))


def fingerprint_of(letter: Letter) -> str:
    """The fingerprint of a letter's cause."""
    return _cause_of(letter).fingerprint


def _cause_of(letter: Letter) -> Cause:
    frames = _frames(letter.traceback)
    place = next((frame.place for frame in reversed(frames) if frame.is_users), "")
    where = map(str, frames[-_INNERMOST:]) if place else (letter.reason,)
    return Cause(
        task=letter.task,
        error=letter.error,
        reason=letter.reason,
        fingerprint=digest(letter.task or "", letter.error, *where)[:12],
        place=place,
        count=1,
        first_died=letter.died_at,
        last_died=letter.died_at,
        example=letter.id,
        message=letter.message[:_SAID],
    )


def _both(known: Cause, died: float) -> Cause:
    return replace(
        known,
        count=known.count + 1,
        first_died=min(known.first_died, died),
        last_died=max(known.last_died, died),
    )


def _frames(traceback: str) -> list[_Frame]:
    """The frames without what differs from death to death."""
    lines = traceback.splitlines()
    frames = []
    for number, line in enumerate(lines):
        found = _FRAME.match(line)
        if found is None:
            continue
        code = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if not code or _MARKS.match(code) or not lines[number + 1].startswith("    "):
            code = f"line {found['line']}"  # without its source there is nothing better
        name, code = (_ADDRESS.sub("0x", text) for text in (found["name"], code))
        frames.append(_Frame(found["file"].replace("\\", "/"), name, code))
    return frames
