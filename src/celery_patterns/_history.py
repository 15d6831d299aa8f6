"""What is remembered of earlier attempts, in the little room of a header: the first, the last few, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._header_values import as_count, as_moment

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LAST", "OTHERS", "error_name", "errors_of", "history_of", "remembering"]

#: How many of the last attempts are kept, beside the first.
LAST = 7
#: How many types of errors are counted; what else comes is counted under :data:`OTHERS`.
KINDS = 8
OTHERS = "others"
#: Bytes of a type's name: the end of it, where the class stands.
NAME = 100


def error_name(error: BaseException) -> str:
    """The error's type, with its module; also of a type that was never meant to be shown."""
    kind = type(error)
    try:
        return f"{kind.__module__}.{kind.__qualname__}"
    except Exception:  # noqa: BLE001 - a metaclass may do as it likes, and the letter must be written
        return str(type.__getattribute__(kind, "__name__"))


def remembering(header: Mapping[str, Any], attempt: int, started: float, error: BaseException | None) -> dict[str, Any]:
    """What the next attempt's header says of the attempts before it, this one being the last.

    Args:
        header: What this attempt's own header said.
        attempt: Its number.
        started: When it started, in seconds since the epoch.
        error: What it died of.
    """
    name = None if error is None else _short(error_name(error))
    errors = errors_of(header)
    if name is not None:
        known = name if name in errors or len(errors.keys() - {OTHERS}) < KINDS else OTHERS
        errors[known] = errors.get(known, 0) + 1
    one = {"attempt": attempt, "at": round(started, 3), "error": name}
    return {"history": _ends([*history_of(header), one]), "errors": errors}


def history_of(header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The attempts that a header or a letter tells of, without what cannot be: the first, and the last few."""
    told = header.get("history")
    return _ends([one for one in map(_entry, told) if one is not None]) if isinstance(told, list) else []


def errors_of(header: Mapping[str, Any]) -> dict[str, int]:
    """How many attempts died of which error; counted from the attempts that are told where no counts are."""
    told = header.get("errors")
    if not isinstance(told, Mapping):
        return _counted(one["error"] for one in history_of(header))
    known = {_short(name): number for name, number in told.items() if isinstance(name, str) and as_count(number)}
    kept = dict(list(known.items())[:KINDS])
    rest = sum(number for name, number in known.items() if name not in kept)
    return {**kept, OTHERS: kept.get(OTHERS, 0) + rest} if rest else kept


def _counted(names: Iterable[str | None]) -> dict[str, int]:
    errors: dict[str, int] = {}
    for name in names:
        if name is not None:
            errors[name] = errors.get(name, 0) + 1
    return errors


def _ends(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return entries if len(entries) <= LAST + 1 else [entries[0], *entries[-LAST:]]


def _entry(told: Any) -> dict[str, Any] | None:
    if not isinstance(told, Mapping) or not as_count(told.get("attempt")):
        return None
    error = told.get("error")
    return {
        "attempt": told["attempt"],
        "at": as_moment(told.get("at")),
        "error": _short(error) if isinstance(error, str) else None,
    }


def _short(name: str) -> str:
    data = name.encode("utf-8", "replace")
    return name if len(data) <= NAME else "…" + data[-NAME + len("…".encode()) :].decode("utf-8", "ignore")
