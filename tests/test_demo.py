"""``make demo``, as anybody runs it first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_all_promises_are_held_in_the_demo(broker: str) -> None:
    """What the README says of it: nothing is lost, and each order is charged once."""
    demo = [sys.executable, "-m", "examples.demo", "--broker", broker, "--orders", "100"]
    # Its own environment: a shop's settings that another test left would lead the demo to that test's servers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOP_")}
    played = subprocess.run(demo, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert played.returncode == 0, played.stdout + played.stderr
    assert f"All promises held on {broker}" in played.stdout
    assert "100 of 100" in played.stdout
