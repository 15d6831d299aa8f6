"""The table of ends in the documentation, made from what the tests show: ``python -m tests.endings_table``."""

from __future__ import annotations

from . import tables
from .endings import ROWS, Row
from .harness import ROOT

PAGE = ROOT / "docs/patterns/dead-letter.md"
BEGIN = "% The table is written by `python -m tests.endings_table`, from the rows that the tests run.\n\n"
END = "\n% The end of the table.\n"
#: What holds for all releases of Celery but the newest, which the tests of one release cannot show.
BEFORE = dict.fromkeys(("rejected", "rejected, badly"), ", and before Celery 5.7 PENDING")


def table() -> str:
    lines: dict[str, str] = {}
    for row in ROWS:
        line = _line(row)
        if lines.setdefault(row.says, line) != line:
            raise AssertionError(f"two rows of one end differ: {line} and {lines[row.says]}")
    head = ["| the end | `reason` | the task's state | who writes the letter |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *lines.values()]) + "\n"


def _line(row: Row) -> str:
    reason = "no letter" if row.reason is None else f"`{row.reason}`"
    state = (row.shown or row.state) + BEFORE.get(row.name, "")
    return f"| {row.says} | {reason} | {state} | {row.writer} |"


def with_table(page: str) -> str:
    """The page with the table that the rows say."""
    return tables.with_table(page, BEGIN, table(), END)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
