"""Log lines as JSON, whatever is in them."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

import orjson

__all__ = ["dumps_line", "text_of"]


def dumps_line(value: Any) -> str:
    """Encode a log line, whatever is in it: what JSON has no word for is told as text."""
    try:
        return orjson.dumps(value, default=text_of, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z).decode()
    except TypeError:  # an integer over 64 bits, a lone surrogate, a list that contains itself, a broken __str__
        return json.dumps({str(name): _told(item) for name, item in value.items()})


def _told(value: Any) -> Any:
    if type(value) in (str, bool, type(None)) or (type(value) is float and isfinite(value)):
        return value
    if type(value) is int and value.bit_length() < 64:  # noqa: PLR2004 - as orjson has it
        return value
    return text_of(value)


def text_of(value: Any) -> str:
    """The value's text, whatever it raises when it is asked."""
    try:
        return str(value)
    except Exception as broken:  # noqa: BLE001 - it is a user's, and a line of the log is no reason to fail a task
        return f"<its text cannot be shown: {type(broken).__name__}>"
