"""Strict JSON: what is sent is what arrives, or it is refused with its path; and any worker reads it."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import math
import re
import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pydantic
import pytest
from celery import Celery, chain, chord, group
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

import celery_patterns as patterns
from celery_patterns import _codec
from celery_patterns.exceptions import ConfigurationError, UnsafeValue

from .test_retry import body_of, published

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
UTC = timezone.utc

fixed_zones = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=3))])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.binary(),
    st.dates(),
    st.uuids(),
    st.decimals(allow_nan=False),
    st.datetimes(timezones=fixed_zones).map(lambda value: value.replace(fold=0)),
    st.times().map(lambda value: value.replace(fold=0)),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=25,
)


def same(left: Any, right: Any) -> bool:
    """Equal in value and in type, at every depth."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return math.copysign(1, left) == math.copysign(1, right) and left == right
    return bool(left == right)


@settings(max_examples=400, deadline=None)
@given(values)
def test_what_is_sent_is_what_a_plain_worker_reads(value: Any) -> None:
    """Any carried value comes back equal in value and type through kombu's own decoder, or is refused."""
    try:
        body = _codec.dumps_message([value], {"name": value}, EMBED)
    except UnsafeValue as refused:
        assert '"__type__"' in str(refused)
        return
    args, kwargs, embed = kombu_json.loads(body)
    assert same(args[0], value)
    assert same(kwargs["name"], value)
    assert embed == EMBED


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.one_of(scalars, st.floats(), st.tuples(st.integers()), st.sets(st.integers())),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.one_of(st.text(), st.integers()), inner)),
        max_leaves=12,
    )
)
def test_nothing_changes_on_the_way(value: Any) -> None:
    """Whatever is handed over either arrives as it was, or raises: never a third thing."""
    try:
        body = _codec.dumps(value)
    except UnsafeValue:
        return
    assert same(_codec.loads(body), value)


def test_kombus_own_wire_form_is_used() -> None:
    """Byte for byte the structures that kombu writes, so that producers and workers of any release understand them."""
    carried = [
        datetime(2026, 1, 31, 12, tzinfo=UTC),
        date(2026, 1, 31),
        time(12, 30),
        Decimal("9.90"),
        uuid.UUID(int=7),
        b"text",
        b"\xff\x00",
    ]
    assert json.loads(_codec.dumps(carried)) == json.loads(kombu_json.dumps(carried))


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Text(str): ...


@dataclasses.dataclass
class Point:
    x: int


class Model(pydantic.BaseModel):
    x: int


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "is NaN"),
        (math.inf, "is infinite"),
        (Decimal("NaN"), "is NaN"),
        ({1: "a"}, "has a key of type int"),
        ({True: "a"}, "has a key of type bool"),
        ((1, 2), "it would arrive as a list: send a list"),
        (Pair(1, 2), "send a list"),
        ({1, 2}, "send a sorted list"),
        (Color.RED, "send its .value"),
        (Level.LOW, "send its .value"),
        (Text("a"), "plain base type"),
        (Point(1), "expected str, int, float"),
        (Model(x=1), 'model_dump(mode="json")'),
        (timedelta(1), "datetime.timedelta"),
        (Path("a"), "pathlib"),
        (object(), "builtins.object"),
        ({"__type__": "uuid", "__value__": {}}, 'exactly the keys "__type__" and "__value__"'),
        (datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), "lost; send value.astimezone(timezone.utc)"),
        (time(12, tzinfo=ZoneInfo("Europe/Paris")), "lost; send a datetime in timezone.utc"),
        (datetime(2026, 10, 25, 2, 30, fold=1), "has fold=1"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value) if isinstance(value, str) else type(value).__name__,
)
def test_what_json_would_change_is_refused_with_its_path_and_cure(value: Any, said: str) -> None:
    """The error names the path, the problem and the cure, and never shows the value."""
    for args, kwargs, path in (
        ([1, value], {}, "args[1]"),
        ([1, {"items": [0, {"price": value}]}], {}, "args[1].items[1].price"),
        ([], {"order": {"a b": [value]}}, "kwargs.order['a b'][0]"),
    ):
        with pytest.raises(UnsafeValue) as caught:
            _codec.dumps_message(args, kwargs, EMBED)
        assert str(caught.value).startswith(path)
        assert said in str(caught.value)
        assert caught.value.path == path


def test_a_value_that_contains_itself_is_refused() -> None:
    """Endless nesting is an answer, not a RecursionError."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnsafeValue, match="nested too deeply"):
        _codec.dumps(loop)


def test_what_the_fast_encoder_cannot_carry_is_carried() -> None:
    """Integers over 64 bits, lone surrogates, and 280 levels of nesting."""
    deep: Any = 1
    for _ in range(280):
        deep = [deep]
    for value in (2**200, -(2**70), "\ud800", deep):
        assert same(_codec.loads(_codec.dumps(value)), value)


@pytest.fixture
def app(database: str) -> Any:
    made = Celery("codec", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_strict_json(made)

    @made.task(shared=False, name="charge")
    def charge(order: Any = None, amount: Any = None) -> None: ...

    yield made
    made.close()


def test_delay_names_task_and_path_and_publishes_nothing(app: Celery) -> None:
    """The caller gets the error at ``.delay()``, and the queue stays empty."""
    charge = app.tasks["charge"]
    with pytest.raises(UnsafeValue) as caught:
        charge.delay("o-1", {"items": [{"price": math.nan}]})
    assert (
        str(caught.value) == "charge(): args[1].items[0].price is NaN, which JSON has no word for; send None or a str"
    )
    assert caught.value.task == "charge"
    with app.connection_for_read() as connection:
        assert connection.default_channel.client.llen("celery") == 0


@pytest.mark.parametrize(
    "build",
    [
        lambda s: chain(s(1), s((1, 2))),
        lambda s: group(s(1), s({1})),
        lambda s: chord([s(1), s(2)], s(amount=math.nan)),
        lambda s: s(1).set(link=s({1: 2})),
        lambda s: s(1).set(link_error=s(b"", (1,))),
        lambda s: s.type.map([(1, 2), {3: 4}]) if hasattr(s, "type") else s({3: 4}),
    ],
)
def test_values_inside_signatures_are_checked_too(app: Celery, build: Any) -> None:
    """Chains, groups, chords and links carry users' values at any depth: none slips by."""
    with pytest.raises(UnsafeValue):
        build(app.tasks["charge"].s).delay()


def test_celerys_own_structure_passes(app: Celery) -> None:
    """Tuples that Celery makes itself, and its own tasks, are not the user's values."""
    s = app.tasks["charge"].s
    group(chain(s(1), s(2)), chord([s(1)], s(2))).delay()
    app.tasks["charge"].starmap([(1, 2), (3, 4)]).delay()
    app.tasks["charge"].chunks([(1, 2), (3, 4)], 1).delay()
    app.tasks["charge"].apply_async((1,), expires=datetime(2100, 1, 1, tzinfo=UTC), link=s(3))
    sent = [(message["headers"]["task"], message["content-type"]) for message in published(app)]
    assert sent == [
        ("charge", "application/json"),  # the group's chain, its first link
        ("charge", "application/json"),  # the group's chord, its header
        ("celery.starmap", "application/json"),
        ("celery.starmap", "application/json"),  # chunks of one
        ("celery.starmap", "application/json"),
        ("charge", "application/json"),
    ]
    assert body_of(published(app)[-1])[2]["callbacks"][0]["args"] == [3]


def test_settings_read_later_do_not_win(database: str) -> None:
    """``use_strict_json`` holds when the settings, with a serializer of their own, are loaded after it."""
    app = Celery("later", broker=database, set_as_current=False)
    patterns.use_strict_json(app)
    app.config_from_object({"task_serializer": "json", "broker_url": database})
    task = app.task(shared=False, name="t")(charge_like)
    with pytest.raises(Exception, match="is NaN"):
        task.delay(math.nan)


def charge_like(order: Any) -> None: ...


def test_a_task_may_keep_its_own_serializer(app: Celery) -> None:
    """A task that says ``serializer="json"`` is sent by kombu's, as before."""
    loose = app.task(shared=False, name="loose", serializer="json")(charge_like)
    loose.delay((1, 2))
    assert body_of(published(app)[-1])[0] == [[1, 2]]
    with pytest.raises(UnsafeValue, match="tuple"):
        app.tasks["charge"].delay((1, 2))


def test_an_error_survives_pickle() -> None:
    """Every error of the tree comes back from pickle as it was; results and pools move them so."""
    import pickle

    from celery_patterns import exceptions

    more = {
        "UnsafeValue": ("is odd", "t"),
        "FailedBefore": ("ValueError", "no"),
        "PublishFailed": (True,),
        "StoreUnavailable": (True,),
    }
    for name in exceptions.__all__:
        kind = getattr(exceptions, name)
        error = kind("said", *more.get(name, ()))
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back), back.args, back.__dict__) == (kind, str(error), error.args, error.__dict__)
    assert ConfigurationError("x").args == ("x",)
