"""The table of the doctor's rules in the documentation, made from the rules: ``python -m tests.doctor_table``."""

from __future__ import annotations

from celery_patterns.doctor import RULES, Rule

from . import tables
from .harness import ROOT

PAGE = ROOT / "docs/doctor.md"
BEGIN = "% The table is written by `python -m tests.doctor_table`, from the rules themselves.\n\n"
END = "\n% The end of the table.\n"
GROUPS = {
    "CP1": "Servers",
    "CP2": "Workers",
    "CP3": "Limits",
    "CP4": "Settings",
    "CP5": "Source",
}


def table() -> str:
    parts: list[str] = []
    for prefix, title in GROUPS.items():
        head = ["| rule | what is wrong | what will happen |", "| --- | --- | --- |"]
        rows = [_row(rule) for rule in RULES if rule.id.startswith(prefix)]
        parts.append("\n".join([f"### {title}\n", *head, *rows]) + "\n")
    return "\n".join(parts)


def _row(rule: Rule) -> str:
    profile = ", in production" if rule.production else ""
    return (
        f'| <span id="{rule.id.lower()}">{rule.id}</span><br>{rule.severity}{profile} | **{rule.title}.** {_cell(rule.seen)} | '
        f"{_cell(rule.happens)} [Seen by others]({rule.link}). |"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def with_table(page: str) -> str:
    """The page with the table that the rules say."""
    return tables.with_table(page, BEGIN, table(), END)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
