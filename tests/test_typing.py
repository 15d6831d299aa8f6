"""What users write passes both type checkers in strict mode, and what is wrong is refused, line by line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent / "typing_api"
WRONG = {number for number, line in enumerate((HERE / "bad.py").read_text().splitlines(), 1) if "# wrong" in line}

CHECKERS = {
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--show-column-numbers"],
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
}


def _complaints(checker: str, file: str) -> set[int]:
    settings: list[str] = []
    if checker == "mypy":
        settings = ["--config-file", str(HERE / "mypy.ini")]
    done = subprocess.run(
        [*CHECKERS[checker], *settings, str(HERE / file)], capture_output=True, text=True, check=False, cwd=HERE
    )
    pattern = re.compile(rf"{file}:(\d+):\d+.*error")
    return {int(match[1]) for match in pattern.finditer(done.stdout)} or _nothing(done)


def _nothing(done: subprocess.CompletedProcess[str]) -> set[int]:
    assert re.search(r"Success: no issues|0 errors", done.stdout), done.stdout + done.stderr
    return set()


@pytest.mark.parametrize("checker", CHECKERS)
def test_good_calls_pass(checker: str) -> None:
    """Decorated signatures keep their types."""
    assert _complaints(checker, "good.py") == set()


@pytest.mark.parametrize("checker", CHECKERS)
def test_wrong_calls_are_refused(checker: str) -> None:
    """Exactly the wrong lines are complained about."""
    assert _complaints(checker, "bad.py") == WRONG
