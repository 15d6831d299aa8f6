"""What runs in the worker's main process."""

from __future__ import annotations

from ._check import CheckPatterns, refusal
from ._intake import Intake
from ._request import Request

__all__ = ["CheckPatterns", "Intake", "Request", "refusal"]
