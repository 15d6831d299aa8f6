"""``celery -A proj patterns doctor``: what a user types to be told what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any, get_args

import click

from ..doctor import RULES, SEVERITIES, Examination, Finding, Profile, Rule, examine
from ._screens import visible
from ._targets import app_of
from ._terminal import NOT_ALL_DONE, say, told

__all__ = ["doctor"]

#: So many places are named of those of which the same is said.
_PLACES = 3
_COLOURS = {"error": "red", "warning": "yellow", "hint": "cyan"}
_EXITS = """\b
Exit codes:
  0  nothing is wrong, or nothing that --fail-on names
  1  something is
  2  wrong use, or the app cannot be imported; nothing was looked at
  130  interrupted"""


def _explained(ctx: click.Context, _: click.Parameter, id_: str | None) -> None:
    """Tell what a rule is about, and be done: no app is needed for that."""
    if id_ is None or ctx.resilient_parsing:
        return
    found = next((rule for rule in RULES if rule.id == id_.upper()), None)
    if found is None:
        raise click.BadParameter(f"there is no rule {visible(id_)}; they are {RULES[0].id} to {RULES[-1].id}")
    _explain(found)
    ctx.exit()


@click.command(epilog=_EXITS)
@click.argument("source", nargs=-1, type=click.Path(exists=True))
@click.option(
    "--offline", is_flag=True, help="Read the settings only, and the SOURCE that is named. No server is asked."
)
@click.option(
    "--profile",
    type=click.Choice(get_args(Profile)),
    default="development",
    show_default=True,
    help="production adds what matters only there.",
)
@click.option(
    "--ignore",
    multiple=True,
    metavar="ID",
    help="A rule, CP203, or one of its places, 'CP203:queue emails'. May be given several times. For good, with a reason: "
    "the setting patterns_doctor_ignore.",
)
@click.option(
    "--fail-on",
    type=click.Choice([*SEVERITIES, "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 for such findings, and for worse ones.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 600, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="For how long each server is waited for.",
)
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
@click.option(
    "--explain", metavar="ID", callback=_explained, expose_value=False, is_eager=True, help="What a rule is about."
)
@click.pass_context
def doctor(
    ctx: click.Context,
    /,
    source: tuple[str, ...],
    offline: bool,
    profile: Profile,
    ignore: tuple[str, ...],
    fail_on: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Find the mistake before production does.

    Reads the app's settings and its tasks, connects to its broker, result backend and store, asks the workers that run, and
    parses SOURCE: files and folders, by default the packages in which the tasks are written. Changes nothing.
    """
    with told(ctx):
        # What the user's modules print as they are imported is no part of the answer.
        with contextlib.redirect_stdout(sys.stderr):
            examined = examine(
                app_of(ctx), offline=offline, profile=profile, ignore=ignore, source=source or None, timeout=timeout
            )
        if as_json:
            click.echo(json.dumps(_facts(examined)))
        else:
            _tell(examined, colours=not (ctx.obj.no_color or os.environ.get("NO_COLOR")))
    if any(one.severity in _failing(fail_on) for one in examined.findings):
        raise click.exceptions.Exit(NOT_ALL_DONE)


def _failing(fail_on: str) -> tuple[str, ...]:
    return () if fail_on == "never" else SEVERITIES[: SEVERITIES.index(fail_on) + 1]


def _tell(examined: Examination, *, colours: bool) -> None:
    width = min(100, max(40, shutil.get_terminal_size().columns))
    for found, where in _gathered(examined.findings):
        _show(found, where, width, colours=colours)
    for found, reason in examined.ignored:
        say(f"{found.id} at {visible(found.where)} is ignored{f': {visible(reason)}' if reason else ''}")
    for what in examined.unchecked:
        say(f"not checked: {what}")
    counts = Counter(found.severity for found in examined.findings)
    said = ", ".join(f"{counts[one]} {one}{'s' if counts[one] > 1 else ''}" for one in SEVERITIES if counts[one])
    say(f"{said}." if said else "Nothing is wrong, as far as was looked.")


def _gathered(findings: Iterable[Finding]) -> Iterator[tuple[Finding, str]]:
    """Those that say the same of several places as one, with these places."""
    places: dict[Finding, list[str]] = {}
    for found in findings:
        places.setdefault(replace(found, where=""), []).append(found.where)
    for found, listed in places.items():
        each = sorted(set(listed), key=_place)
        more = f" and {len(each) - _PLACES} more, which --json names" if len(each) > _PLACES else ""
        yield found, ", ".join(each[:_PLACES]) + more


def _place(where: str) -> tuple[str, int]:
    """A file's lines in their order."""
    path, _, line = where.rpartition(":")
    return (path, int(line)) if line.isdecimal() else (where, 0)


def _show(found: Finding, where: str, width: int, *, colours: bool) -> None:
    id_, severity = found.id, str(found.severity)
    if colours:
        id_, severity = click.style(id_, bold=True), click.style(severity, fg=_COLOURS[severity], bold=True)
    say(f"{id_} {severity}  {visible(where)}")
    for word, text in (("", f"{found.what}."), ("", found.happens), ("Cure: ", found.cure)):
        _paragraph(word, visible(text), width)
    say(f"  See: {found.upstream}, and celery patterns doctor --explain {found.id}\n")


def _paragraph(word: str, text: str, width: int) -> None:
    for line in textwrap.wrap(
        f"{word}{text}",
        width,
        initial_indent="  ",
        subsequent_indent="  " + " " * len(word),
        break_on_hyphens=False,
        break_long_words=False,
    ):
        say(line)


def _explain(rule: Rule) -> None:
    say(f"{rule.id} {rule.severity}: {rule.title}\n")
    for text in (rule.seen, rule.happens):
        _paragraph("", text, 80)
    say(f"\n  Others who met it: {rule.link}")
    if rule.production:
        say("  Looked for with --profile production only.")


def _facts(examined: Examination) -> dict[str, Any]:
    return {
        "findings": [asdict(one) for one in examined.findings],
        "ignored": [{**asdict(one), "reason": reason} for one, reason in examined.ignored],
        "unchecked": list(examined.unchecked),
    }
