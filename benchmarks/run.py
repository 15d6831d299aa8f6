"""The whole bench: ``python -m benchmarks.run [--quick] [--check] [--only PART …]``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import encoder, end_to_end, letters, report, round_trips, stores, tracer
from .load import Load
from .measure import Section

RESULTS = Path(__file__).resolve().parent / "results"

PARTS: dict[str, Callable[[bool], list[Section]]] = {
    "tracer": lambda quick: [tracer.measure(quick=quick)],
    "round-trips": lambda quick: [round_trips.measure(quick=quick)],
    "stores": lambda quick: [stores.measure(quick=quick)],
    "encoder": lambda quick: [encoder.measure(quick=quick)],
    "letters": lambda quick: letters.measure(quick=quick),
    "end-to-end": lambda quick: end_to_end.measure(quick=quick, say=_say),
    "dead-letter": lambda quick: end_to_end.measure_letters(quick=quick, say=_say),
}


def main() -> int:
    options = _options()
    load, around = Load(), report.surroundings()
    began = time.monotonic()
    sections: list[Section] = []
    for part in options.only or PARTS:
        _say(f"measuring: {part}")
        for section in PARTS[part](options.quick):
            sections.append(section)
            for table in section.tables:
                print(f"\n{report.text_of(table)}\n", flush=True)
    verdict = report.targets_table(sections)
    print(report.text_of(verdict))
    around["meanwhile"] = load.text()
    _say(f"{time.monotonic() - began:.0f} seconds; {around['meanwhile']}")
    if not options.only:
        report.write(options.out, sections, around)
        _say(f"written: results.md, results.json and results.png in {options.out}")
    missed = [target for section in sections for target in section.targets if not target.passed]
    return 1 if options.check and missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description="What the patterns cost, beside plain Celery.")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds: a few minutes instead of forty, and more noise"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}; writes nothing"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results are written")
    return parser.parse_args()


def _say(text: str) -> None:
    print(f"[bench] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
