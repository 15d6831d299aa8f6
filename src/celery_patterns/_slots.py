"""The slot of a schedule that a periodic task is for."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from celery.schedules import crontab, schedule

from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from celery.schedules import BaseSchedule

__all__ = ["latest_slot"]

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

#: The 29th of February can be eight years away; a weekday that it must fall on, forty.
LONGEST_GAP = timedelta(days=41 * 366)

#: A crontab is due at whole minutes.
HALF_A_STEP = timedelta(seconds=30)


def latest_slot(every: BaseSchedule | timedelta | float) -> datetime:
    """The last time, up to now, at which a schedule was due.

    It is for ``beat_schedule``, inside a ``celery.beat.BeatLazyFunc``: beat then works it out each time it sends the task.
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
        ConfigurationError: When it is neither, or an interval that is not longer than nothing.
    """
    if isinstance(every, int | float | timedelta):
        every = schedule(every)
    if isinstance(every, crontab):
        slot = _latest(every)
        # Not in a named zone, which JSON cannot carry.
        return slot.replace(tzinfo=timezone(slot.utcoffset() or timedelta(0)))
    if not isinstance(every, schedule):
        raise ConfigurationError(
            f"expected a crontab, or an interval as a schedule, a timedelta or seconds, got a {type(every).__name__}"
        )
    step = every.run_every
    if step <= timedelta(0):
        raise ConfigurationError(f"expected an interval that is longer than nothing, got {step}")
    now = every.maybe_make_aware(every.now())
    begun: datetime = now - (now - EPOCH) % step
    return begun.astimezone(timezone.utc)


def _latest(every: crontab) -> datetime:
    """Celery's own arithmetic knows a crontab's next time after another: search for the last one that is over."""
    now = every.maybe_make_aware(every.now()).astimezone(every.tz)
    without, back = timedelta(0), timedelta(minutes=1)
    while not _is_over(_after(every, now - back), now):
        without, back = back, back * 2
        if without > LONGEST_GAP:
            raise ConfigurationError(f"expected a crontab that is due at some time, got {every!r}")
    while back - without > HALF_A_STEP:
        middle = without + (back - without) / 2
        if _is_over(_after(every, now - middle), now):
            back = middle
        else:
            without = middle
    return _after(every, now - back)


def _after(every: crontab, moment: datetime) -> datetime:
    moment, delta, _ = every.remaining_delta(moment)
    slot: datetime = moment + delta
    return slot


def _is_over(slot: datetime, now: datetime) -> bool:
    # Within one zone Python compares what clocks show, and where the time changes that is not what comes first.
    return slot.astimezone(timezone.utc) <= now.astimezone(timezone.utc)
