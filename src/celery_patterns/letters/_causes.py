"""What the letters died of: a fingerprint of each traceback, and how many share it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .._keys import digest
from .._letter import Letter

__all__ = ["Cause", "causes_of", "place_of"]

#: The innermost frames are the bug; a long traceback has its middle left out, and a deep recursion no fixed depth.
_INNERMOST = 20

_FRAME = re.compile(r'^ *File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>.+)$')
_MARKS = re.compile(r"^[\s~^]*$")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Letters of one task that died in one place of one type of error.

    Attributes:
        task: The task's name; None where the messages do not tell.
        error: The error's type, with its module.
        reason: The reason of the first of them.
        fingerprint: 12 hexadecimal digits of the traceback's innermost 20 frames, each by its file's name and folder, its
            function and its line of code: equal for other arguments, other releases and moved lines, and another one for
            another place. Letters without a traceback have that of their reason.
        place: The innermost frame, for example ``shop/orders.py, in charge``; empty without a traceback.
        count: How many letters.
        first_died: When the first of them died, in seconds since the epoch.
        last_died: When the last of them died.
        example: The id of the first of them.
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


def causes_of(letters: Iterable[Letter]) -> list[Cause]:
    """The causes, the most frequent first. One is kept for each, and no letter."""
    found: dict[tuple[str | None, str, str], Cause] = {}
    for letter in letters:
        frames = _frames(letter.traceback)
        fingerprint = digest(*(frames or (letter.reason,)))[:12]
        known = found.get(key := (letter.task, letter.error, fingerprint))
        died = letter.died_at
        if known is None:
            found[key] = Cause(
                task=letter.task,
                error=letter.error,
                reason=letter.reason,
                fingerprint=fingerprint,
                place=place_of(frames),
                count=1,
                first_died=died,
                last_died=died,
                example=letter.id,
            )
        else:
            found[key] = replace(
                known,
                count=known.count + 1,
                first_died=min(known.first_died, died),
                last_died=max(known.last_died, died),
            )
    return sorted(found.values(), key=lambda cause: (-cause.count, cause.first_died))


def _frames(traceback: str) -> list[str]:
    """The innermost frames as text, without what differs from death to death."""
    lines = traceback.splitlines()
    frames = []
    for number, line in enumerate(lines):
        found = _FRAME.match(line)
        if found is None:
            continue
        code = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if not code or _MARKS.match(code) or not lines[number + 1].startswith("    "):
            code = f"line {found['line']}"  # without its source there is nothing better
        frames.append(f"{_short(found['file'])}, in {_ADDRESS.sub('0x', found['name'])}: {_ADDRESS.sub('0x', code)}")
    return frames[-_INNERMOST:]


def _short(file: str) -> str:
    """The file and its folder: a release may lie in a folder of its own."""
    return "/".join(file.replace("\\", "/").split("/")[-2:])


def place_of(frames: list[str]) -> str:
    """The innermost frame, without its line of code."""
    return frames[-1].partition(": ")[0] if frames else ""
