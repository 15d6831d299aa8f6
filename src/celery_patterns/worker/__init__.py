"""What runs in the worker's main process."""

from __future__ import annotations

from ._check import CheckPatterns

__all__ = ["CheckPatterns"]
