"""The slot of a schedule that a periodic task is for, and two beats whose tasks run once for each."""

from __future__ import annotations

import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery
from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule, crontab, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_patterns import idempotent, latest_slot, use_patterns
from celery_patterns.exceptions import ConfigurationError, InvalidKey

from .harness import ROOT, Floor, floor

UTC = timezone.utc
#: Before 5.7 Celery itself is an hour wrong where clocks are changed.
CHANGING = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"] if celery.VERSION >= (5, 7) else []
ZONES = ["UTC", "Asia/Kathmandu", *CHANGING]
#: Zones change their time around these, forth or back.
DAYS = [
    datetime(2026, 3, 28),
    datetime(2026, 10, 24),
    datetime(2026, 3, 7),
    datetime(2026, 10, 31),
    datetime(2028, 2, 28),
]


class Clock:
    """What a schedule takes for the time."""

    def __init__(self, now: datetime, zone: str = "UTC") -> None:
        self.now = now
        self.app = Celery(set_as_current=False, timezone=zone)

    def crontab(self, *fields: Any, **named: Any) -> crontab:
        return crontab(*fields, **named, nowfun=self.read, app=self.app)

    def read(self) -> datetime:
        return self.now.astimezone(self.app.timezone)


@pytest.mark.parametrize(
    ("zone", "fields", "now", "slot"),
    [
        ("UTC", {}, "2026-11-30T09:57:06.500", "2026-11-30T09:57:00+00:00"),
        ("UTC", {}, "2026-11-30T09:57:00", "2026-11-30T09:57:00+00:00"),
        ("UTC", {"minute": 0, "hour": 3}, "2026-11-30T02:59:59.999", "2026-11-29T03:00:00+00:00"),
        ("UTC", {"minute": 0, "hour": 3}, "2026-11-30T03:00:00", "2026-11-30T03:00:00+00:00"),
        ("Europe/Berlin", {"minute": 0, "hour": 3}, "2026-11-30T02:30", "2026-11-30T03:00:00+01:00"),
        ("UTC", {"minute": "*", "month_of_year": 1}, "2026-11-30T02:30", "2026-01-31T23:59:00+00:00"),
        (
            "UTC",
            {"minute": 0, "hour": 0, "day_of_month": 29, "month_of_year": 2},
            "2027-03-01",
            "2024-02-29T00:00:00+00:00",
        ),
        (
            "UTC",
            {"minute": 0, "hour": 0, "day_of_month": 29, "month_of_year": 2, "day_of_week": "mon"},
            "2043-01-01",
            "2016-02-29T00:00:00+00:00",
        ),
        # The night of 29 March has no half past two: beat sends that task an hour later, at the same instant.
        ("Europe/Berlin", {"minute": 30, "hour": 2}, "2026-03-29T01:29:59", "2026-03-28T02:30:00+01:00"),
        ("Europe/Berlin", {"minute": 30, "hour": 2}, "2026-03-29T01:30:00", "2026-03-29T02:30:00+01:00"),
        # That of 25 October has two: beat sends the task at the first, and neither is another slot.
        ("Europe/Berlin", {"minute": 30, "hour": 2}, "2026-10-25T00:30:00", "2026-10-25T02:30:00+02:00"),
        ("Europe/Berlin", {"minute": 30, "hour": 2}, "2026-10-25T01:10:00", "2026-10-25T02:30:00+02:00"),
        ("Europe/Berlin", {"minute": 30, "hour": 2}, "2026-10-25T01:30:00", "2026-10-25T02:30:00+02:00"),
        ("Europe/Berlin", {}, "2026-10-25T01:10:00", "2026-10-25T02:59:00+02:00"),
        ("Europe/Berlin", {}, "2026-10-25T02:00:00", "2026-10-25T03:00:00+01:00"),
    ],
)
def test_the_latest_slot_of_a_crontab_is_in_its_zone(zone: str, fields: dict[str, Any], now: str, slot: str) -> None:
    """The last minute up to now that its fields name, as clocks show it there, also where they are changed."""
    clock = Clock(datetime.fromisoformat(now).replace(tzinfo=UTC), zone)
    assert latest_slot(clock.crontab(**fields)).isoformat() == slot


@pytest.mark.parametrize("every", [schedule(600, app=Celery(set_as_current=False)), 600, 600.0, timedelta(minutes=10)])
def test_the_slots_of_an_interval_are_counted_from_1970_on(every: Any) -> None:
    """However the interval is said, and whenever a beat was started."""
    before = datetime.now(UTC)
    slot = latest_slot(every)
    assert slot.minute % 10 == slot.second == slot.microsecond == 0
    assert slot.tzinfo is UTC
    assert before - timedelta(minutes=10) < slot <= datetime.now(UTC)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("step", [timedelta(minutes=10), timedelta(hours=6), timedelta(days=1), timedelta(days=7)])
def test_an_intervals_slots_are_utcs_also_where_clocks_are_changed(zone: str, step: timedelta) -> None:
    """Every half hour of a year's changes: none is taken for another one, and none has two."""
    for day in DAYS:
        clock = Clock(day.replace(tzinfo=UTC), zone)
        for _ in range(4 * 48):
            clock.now += timedelta(minutes=30, seconds=1)
            past = (clock.now - datetime(1970, 1, 1, tzinfo=UTC)) % step
            assert latest_slot(schedule(step, nowfun=clock.read, app=clock.app)) == clock.now - past


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            BaseSchedule(),
            "expected a crontab, or an interval as a schedule, a timedelta or seconds, got a BaseSchedule",
        ),
        (
            crontab,
            "expected a crontab, or an interval as a schedule, a timedelta or seconds, got the class crontab itself",
        ),
        ("hourly", "expected a crontab, or an interval as a schedule, a timedelta or seconds, got a str"),
        (None, "expected a crontab, or an interval as a schedule, a timedelta or seconds, got a NoneType"),
        (True, "expected a crontab, or an interval as a schedule, a timedelta or seconds, got a bool"),
        (math.nan, "expected an interval of some seconds, got nan"),
        (math.inf, "expected an interval of some seconds, got inf"),
        (
            schedule(86400, relative=True),
            "expected an interval that counts from 1970 on, got one with relative=True; write a crontab",
        ),
        (0, "expected an interval that is longer than nothing, got 0:00:00"),
        (timedelta(seconds=-1), "expected an interval that is longer than nothing, got -1 day, 23:59:59"),
    ],
)
def test_what_has_no_slots_is_refused(wrong: Any, said: str) -> None:
    """Not everything that beat takes: two beats would say of ``solar`` that the sun sets at two times."""
    with pytest.raises(ConfigurationError) as caught:
        latest_slot(wrong)
    assert str(caught.value) == said


def test_a_crontab_that_is_never_due_is_refused() -> None:
    """It has no last time."""
    every = Clock(datetime(2026, 11, 30, tzinfo=UTC)).crontab(minute=0, hour=0, day_of_month=29, month_of_year=2)
    every.day_of_month = {30}  # Celery 5.5 lets it be written
    with pytest.raises(ConfigurationError, match="expected a crontab that is due at some time, got <crontab: 0 0 29 2"):
        latest_slot(every)


def _numbers(least: int, greatest: int) -> Any:
    some = st.sets(st.integers(least, greatest), min_size=1, max_size=4)
    return st.one_of(st.just("*"), st.sampled_from(["*/2", "*/7"]), some)


@settings(max_examples=200, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    day=st.sampled_from(DAYS),
    minute=_numbers(0, 59),
    hour=_numbers(0, 23),
    day_of_week=_numbers(0, 6),
    late=st.lists(st.floats(0, 50), min_size=30, max_size=30),
    behind=st.floats(0, 9),
)
def test_every_run_of_a_beat_has_a_slot_of_its_own_and_a_second_beat_gets_the_same_ones(
    zone: str, day: datetime, minute: Any, hour: Any, day_of_week: Any, late: list[float], behind: float
) -> None:
    """By Celery's own rules of what is due, over days on which clocks are changed: no run is taken for a duplicate."""
    clock = Clock(day.replace(tzinfo=UTC), zone)
    every = clock.crontab(minute=minute, hour=hour, day_of_week=day_of_week)
    last, slots = clock.read(), []
    for seconds in late:
        clock.now += max(every.remaining_estimate(last), timedelta(0)) + timedelta(seconds=seconds)
        assert every.is_due(last).is_due
        last = clock.read()
        slots.append(latest_slot(every))
        sent = clock.now
        # Another one is behind, but not so far that the next slot is there.
        clock.now += min(timedelta(seconds=behind), max(every.remaining_estimate(last), timedelta(0)) * 0.9)
        assert latest_slot(every).isoformat() == slots[-1].isoformat()
        clock.now = sent
    told = [slot.isoformat() for slot in slots]
    assert len(set(told)) == len(told)


def test_a_function_in_the_place_of_a_slot_is_told_what_to_do() -> None:
    """It was meant to be called as beat sends."""
    with Celery("beat", broker="memory://", set_as_current=False) as app:
        use_patterns(app)

        @app.task(shared=False, name="bill", patterns=(idempotent(key="slot", ttl=timedelta(days=1)),))
        def bill(slot: datetime) -> None: ...

        with pytest.raises(
            InvalidKey, match=r"slot is a function itself; expected what it returns, .* by a BeatLazyFunc"
        ):
            bill.delay(latest_slot)


def test_it_is_pickled_with_the_schedule_as_beat_keeps_it() -> None:
    """Celery's own scheduler keeps its entries in a shelf."""
    kept = pickle.loads(pickle.dumps(BeatLazyFunc(latest_slot, crontab(minute=0, hour=3))))
    assert kept().hour == 3


def test_a_crontab_counts_in_the_zone_of_the_app_that_sends() -> None:
    """Its own app, if it has one; else the current one, as beat has it."""
    with Celery(timezone="Asia/Kathmandu") as app:
        app.set_current()
        assert latest_slot(crontab(minute=0, hour=3)).utcoffset() == timedelta(hours=5, minutes=45)
        of_another = crontab(minute=0, hour=3, app=Celery(timezone="Asia/Tokyo", set_as_current=False))
        assert latest_slot(of_another).utcoffset() == timedelta(hours=9)


@contextmanager
def _beats(own: Floor, number: int) -> Iterator[None]:
    beat = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "tests.apps.entry",
        "beat",
        "-l",
        "INFO",
        "--max-interval",
        "1",
        "--pidfile=",
    ]
    started = []
    for at in range(number):
        with (own.folder / f"beat-{at}.log").open("wb") as log:
            shelf = f"--schedule={own.folder}/shelf-{at}"
            environment = {**os.environ, **own.environment}
            started.append(subprocess.Popen([*beat, shelf], cwd=ROOT, env=environment, stdout=log, stderr=log))
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # beat ends from within its signal's handler, which may wait for itself
                process.kill()
                process.wait()


def _sent(own: Floor, at: int) -> int:
    return (own.folder / f"beat-{at}.log").read_text(errors="replace").count("Sending due task bill")


def _two_beats(environment: dict[str, str], folder: Path, every: str, slots: int, seconds: float) -> list[datetime]:
    with floor({**environment, "FLOOR_BEAT": every}, folder) as own:
        own.worker()
        with _beats(own, 2):
            # A beat says so before it sends.
            own.wait(
                lambda: min(_sent(own, 0), _sent(own, 1), own.traces.count("billed")) >= slots,
                seconds,
                "both have sent",
            )
        sent = _sent(own, 0) + _sent(own, 1)

        def over() -> bool:
            got, done = (
                set(re.findall(rf"Task bill\[(\S+)\] {end}", own.workers[0].text())) for end in ("rec", "succ")
            )
            return got == done and len(done) >= sent - 2  # a beat that is ended has perhaps said so, and sent nothing

        own.wait(over, 40, "each message has ended as a success")
        return [datetime.fromisoformat(slot) for slot in own.traces.all("billed")]


def test_two_beats_run_a_slot_once(environment: dict[str, str], tmp_path: Path) -> None:
    """Each slot is run once, and each of the messages gets its result."""
    slots = _two_beats(environment, tmp_path, "2", 5, 40)
    assert len(set(slots)) == len(slots) >= 5
    assert {slot.second % 2 for slot in slots} == {0}


@pytest.mark.long
def test_two_beats_run_each_minute_of_a_crontab_once(environment: dict[str, str], tmp_path: Path) -> None:
    """And leave none out."""
    slots = sorted(_two_beats(environment, tmp_path, "minute", 3, 300))
    assert [after - before for before, after in pairwise(slots)] == [timedelta(minutes=1)] * (len(slots) - 1)
    assert len(slots) >= 3
