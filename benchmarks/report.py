"""What is left of a run: a table for people, the numbers of every round, a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .app import PLAIN, ROWS
from .measure import Section, Spread, Table, Target, differences, ratios
from .tracer import PLAIN as PLAIN_TASK

PACKAGES = ("celery", "kombu", "amqp", "redis", "structlog", "orjson", "celery-patterns")


def surroundings() -> dict[str, Any]:
    """What the numbers depend on, without a name or a path of this machine."""
    return {
        "Python": platform.python_version(),
        "CPUs": os.cpu_count(),
        **{name: version(name) for name in PACKAGES},
    }


def targets_table(sections: Iterable[Section]) -> Table:
    targets: list[Target] = [target for section in sections for target in section.targets]
    rows = [(target.what, target.wanted, target.got, "PASS" if target.passed else "FAIL") for target in targets]
    return Table("Targets", ("what", "wanted", "got", ""), rows)


def text_of(table: Table) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(table.columns, *table.rows, strict=True)]
    lines = [table.columns, tuple("-" * width for width in widths), *table.rows]
    rows = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(
        [f"## {table.title}", "", *(f"| {row} |" for row in rows), *(["", table.notes] * bool(table.notes))]
    )


def write(folder: Path, sections: Sequence[Section], around: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    tables = [targets_table(sections), *(table for section in sections for table in section.tables)]
    said = ", ".join(f"{name} {value}" for name, value in around.items() if name != "meanwhile")
    parts = [
        "# What the patterns cost",
        f"{said}.",
        f"While it ran, {around['meanwhile']}.",
        *(text_of(table) for table in tables),
    ]
    (folder / "results.md").write_text("\n\n".join(parts) + "\n")
    raw = {section.name: _rounded(section.raw) for section in sections}
    (folder / "results.json").write_text(json.dumps({"surroundings": around, **raw}, indent=1) + "\n")
    _plot(folder / "results.png", raw)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _plot(path: Path, raw: Mapping[str, Any]) -> None:
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    times = raw["tracer"]["microseconds"]
    added = {name: differences(values, times[PLAIN_TASK]) for name, values in times.items() if name != PLAIN_TASK}
    _bars(axes[0][0], "Added to one task, µs", {"": added})
    speed = {
        name: ratios(body["microseconds"]["kombu"], body["microseconds"]["ours"])
        for name, body in raw["encoder"].items()
    }
    _bars(axes[0][1], "Encoding, times kombu's speed", {"": speed}, one=True)
    for axis, what, title in ((axes[1][0], "drained", "Drain rate"), (axes[1][1], "published", "Publish rate")):
        brokers = {
            broker: _of_plain(raw[broker]["seconds per task"], what)
            for broker in ("Redis", "RabbitMQ")
            if broker in raw
        }
        _bars(axis, f"{title}, of plain Celery at WARNING", brokers, one=True)
    figure.savefig(path, dpi=100)


def _of_plain(rows: Mapping[str, Any], what: str) -> dict[str, list[float]]:
    return {ROWS[row].says: ratios(rows[PLAIN][what], rounds[what]) for row, rounds in rows.items() if row != PLAIN}


def _bars(axis: Any, title: str, groups: Mapping[str, Mapping[str, Sequence[float]]], *, one: bool = False) -> None:
    """Medians as bars, quartiles as whiskers; a line at 1 where the numbers are ratios."""
    height = 0.8 / max(1, len(groups))
    names: list[str] = []
    for number, (group, bars) in enumerate(groups.items()):
        names = list(bars)
        spreads = [Spread.of(values) for values in bars.values()]
        axis.barh(
            [place + number * height for place in range(len(names))],
            [spread.median for spread in spreads],
            height,
            label=group,
            xerr=[[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]],
            capsize=3,
        )
    axis.set_yticks([place + height * (len(groups) - 1) / 2 for place in range(len(names))], names)
    axis.invert_yaxis()
    axis.set_title(title)
    if one:
        axis.axvline(1, color="black", linewidth=0.8)
    if len(groups) > 1:
        axis.set_xlim(0, 1.5)  # leaves room for the legend
        axis.legend(loc="upper right")
