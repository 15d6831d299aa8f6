"""The slot of a schedule that a periodic task is for."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta, timezone
from itertools import product
from typing import TYPE_CHECKING, Any

from celery.schedules import crontab, schedule

from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from celery.schedules import BaseSchedule

__all__ = ["latest_slot"]

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

#: In days: the 29th of February can be eight years away, and forty on one weekday.
LONGEST_GAP = 41 * 366


def latest_slot(every: BaseSchedule | timedelta | float) -> datetime:
    """The last time, up to now, at which a schedule was due.

    It is for ``beat_schedule``, inside a ``celery.beat.BeatLazyFunc``: beat then works it out each time it sends the task.
    Called where the schedule is written, it would be the same slot for ever, and each later run a duplicate.
    Two beats of one app, of which one is late, or has a clock that is wrong by less than the schedule's step, get the same
    slot; with that argument as its key the task runs once for both.

    It does not promise a run for every slot: a beat that comes back after several of them sends the task once, for the
    last.

    Args:
        every: A crontab, in the time zone of the app; or an interval, as beat takes it: a ``schedule``, a timedelta, or
            seconds. An interval's slots are counted from 1970 on in UTC, whenever a beat was started: one of an hour begins
            at each full hour.

    Returns:
        An aware datetime: as clocks show it in the crontab's time zone, with their offset from UTC then; in UTC for an
        interval.

    Raises:
        ConfigurationError: When it is neither; and for an interval that is not longer than nothing, or is ``relative``: its
            edges are those of days and hours in the app's time zone.
    """
    found: Any = _interval(every) if type(every) in (int, float, timedelta) else every
    if isinstance(found, crontab):
        slot = _latest(found)
        # Not in a named zone, which JSON cannot carry.
        return slot.replace(tzinfo=timezone(slot.utcoffset() or timedelta(0)))
    if not isinstance(found, schedule):
        raise ConfigurationError(
            "expected a crontab, or an interval as a schedule, a timedelta or seconds, got "
            f"{f'the class {every.__name__} itself' if isinstance(every, type) else f'a {type(every).__name__}'}"
        )
    if found.relative:
        raise ConfigurationError(
            "expected an interval that counts from 1970 on, got one with relative=True; write a crontab"
        )
    step = found.run_every
    if step <= timedelta(0):
        raise ConfigurationError(f"expected an interval that is longer than nothing, got {step}")
    now = found.maybe_make_aware(found.now()).astimezone(timezone.utc)  # in a zone, a difference is one of clock faces
    begun: datetime = now - (now - EPOCH) % step
    return begun


def _interval(every: Any) -> schedule:
    try:
        return schedule(every)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"expected an interval of some seconds, got {every}") from None


def _latest(every: crontab) -> datetime:
    # Celery knows the time after another one only, and before 5.7 not the same one on the next day.
    now = every.maybe_make_aware(every.now()).astimezone(every.tz)
    hours, minutes = sorted(every.hour, reverse=True), sorted(every.minute, reverse=True)
    for back in range(LONGEST_GAP):
        day = now.date() - timedelta(days=back)
        if not _is_on(every, day):
            continue
        for hour, minute in product(hours, minutes):
            slot = datetime.combine(day, time(hour, minute), now.tzinfo)
            # Within one zone Python compares what clocks show, and where the time changes that is not what comes first.
            if slot.astimezone(timezone.utc) <= now.astimezone(timezone.utc):
                return slot
    raise ConfigurationError(f"expected a crontab that is due at some time, got {every!r}")


def _is_on(every: crontab, day: date) -> bool:
    # In a crontab Sunday is 0.
    days = day.day in every.day_of_month and day.isoweekday() % 7 in every.day_of_week
    return days and day.month in every.month_of_year
