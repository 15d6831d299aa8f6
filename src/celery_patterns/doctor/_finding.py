"""What the doctor says: a finding, the rule that it comes from, and what could not be looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from ._case import Case

__all__ = ["SEVERITIES", "Finding", "Rule", "Severity", "Sign", "UnknownError", "rule", "some"]

Severity = Literal["error", "warning", "hint"]
#: From the worst to the mildest.
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

_UPSTREAM = "https://github.com/"


class UnknownError(Exception):
    """A rule needs what could not be looked at; the text says why."""


@dataclass(frozen=True)
class Sign:
    """What a rule has seen in one place.

    Attributes:
        where: The setting, the task, the queue, the server, or the file and line.
        what: What is wrong, with the numbers that conflict.
        cure: What to change; the exact line where there is one.
        happens: What will happen, and when, where that is more than the rule says.
    """

    where: str
    what: str
    cure: str
    happens: str | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        id: The rule's, for example ``CP301``.
        severity: ``error``: a promise does not hold, or tasks are lost, hang or run twice. ``warning``: so they are under a
            condition that will come. ``hint``: it costs more than it has to.
        where: The setting, the task, the queue, the server, or the file and line.
        what: What is wrong, with the numbers that conflict.
        happens: What will happen, and when.
        cure: What to change.
        upstream: Where others have met it.
    """

    id: str
    severity: Severity
    where: str
    what: str
    happens: str
    cure: str
    upstream: str

    def __str__(self) -> str:
        return f"{self.id} {self.severity}: {self.where}: {self.what}. {self.happens} {self.cure}"


@dataclass(frozen=True)
class Rule:
    """One thing that can be wrong, and how it is seen.

    Attributes:
        id: ``CP`` and three digits, of which the first is the group's.
        severity: How bad it is.
        title: What is wrong, in a few words.
        happens: What will happen, and when.
        upstream: Where others have met it: ``celery/celery#2481``, or a page.
        production: Whether it is one for production alone.
        look: Finds it.
    """

    id: str
    severity: Severity
    title: str
    happens: str
    upstream: str
    production: bool
    look: Callable[[Case], Iterable[Sign]]

    def findings(self, case: Case) -> Iterator[Finding]:
        """What it finds.

        Raises:
            UnknownError: When it needs what could not be looked at.
        """
        for sign in self.look(case):
            happens = sign.happens or self.happens
            yield Finding(self.id, self.severity, sign.where, sign.what, happens, sign.cure, self.link)

    @property
    def seen(self) -> str:
        """What it looks at, in a sentence."""
        return str(self.look.__doc__).strip()

    @property
    def link(self) -> str:
        """The page where others have met it."""
        repository, hash_sign, number = self.upstream.partition("#")
        return f"{_UPSTREAM}{repository}/issues/{number}" if hash_sign else self.upstream


def rule(
    id_: str,
    severity: Severity,
    title: str,
    happens: str,
    *,
    upstream: str,
    production: bool = False,
) -> Callable[[Callable[[Case], Iterable[Sign]]], Rule]:
    """Make a rule of the function that sees it."""

    def made(look: Callable[[Case], Iterable[Sign]]) -> Rule:
        return Rule(id_, severity, title, happens, upstream, production, look)

    return made


def some(names: list[str]) -> str:
    """The first few."""
    each = list(dict.fromkeys(names))
    return ", ".join(each[:3]) + (f" and {len(each) - 3} more" if len(each) > 3 else "")  # noqa: PLR2004 - a few
