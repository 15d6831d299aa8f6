"""What every section measures with: interleaved rounds, medians with their quartiles, targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def text(self, digits: int) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class Target:
    """What a number has to be."""

    what: str
    wanted: str
    got: str
    passed: bool


@dataclass(frozen=True)
class Table:
    """Rows of text, for people."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the bench: its tables, its targets, and the numbers of every round."""

    name: str
    tables: list[Table]
    targets: list[Target]
    raw: dict[str, Any] = field(default_factory=dict)


def interleaved(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every case once a round, each round starting with another one.

    The machine's speed drifts over seconds, so only numbers of one round may be compared.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in rotated(list(cases), number):
            found[name].append(cases[name]())
    return found


def rotated(names: Sequence[str], number: int) -> list[str]:
    start = number % len(names)
    return [*names[start:], *names[:start]]


def ratios(values: Sequence[float], plain: Sequence[float]) -> list[float]:
    return [value / base for value, base in zip(values, plain, strict=True)]


def differences(values: Sequence[float], plain: Sequence[float]) -> list[float]:
    return [value - base for value, base in zip(values, plain, strict=True)]


def at_least(what: str, wanted: float, values: Sequence[float]) -> Target:
    got = Spread.of(values)
    return Target(what, f"at least {wanted:g}", got.text(2), got.median >= wanted)


def at_most(what: str, wanted: float, values: Sequence[float], unit: str) -> Target:
    got = Spread.of(values)
    return Target(what, f"at most {wanted:g} {unit}", f"{got.text(1)} {unit}", got.median <= wanted)
