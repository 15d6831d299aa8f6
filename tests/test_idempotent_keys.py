"""What a key is made of: paths into arguments, and the scope that keeps tenants apart."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pydantic
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.exceptions import Reject
from celery.result import AsyncResult
from hypothesis import given, settings
from hypothesis import strategies as st

import celery_patterns as patterns
from celery_patterns import dead_letter, dead_letters, idempotent
from celery_patterns._message import HEADER
from celery_patterns.exceptions import ConfigurationError, InvalidKey
from celery_patterns.stores import MemoryStore

from .harness import Floor
from .here import run_here
from .test_idempotent import identity, keyed, values
from .test_retry import body_of, published

DAY = timedelta(days=1)


@pytest.fixture
def app(database: str) -> Any:
    made = Celery("keys", broker=database, backend="cache+memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, MemoryStore())
    yield made
    made.close()


def own_key(*_: Any, **__: Any) -> str:
    """A body that gives the key it was run with."""
    return patterns.current_claim().key


def keeper(app: Celery, signature: Any, **options: Any) -> Any:
    """A task with this signature that returns its own key."""

    def keeps(*args: Any, **kwargs: Any) -> str:
        return own_key()

    keeps.__signature__ = inspect.signature(signature)  # type: ignore[attr-defined]
    return keyed(app, keeps, same=(), **options)


class Customer(pydantic.BaseModel):
    id: int


class Order(pydantic.BaseModel):
    id: UUID
    customer: Customer


@dataclass
class Parcel:
    id: str

    @property
    def weight(self) -> int:
        raise LookupError(f"{self.id} is not weighed")

    @property
    def size(self) -> int:
        raise SoftTimeLimitExceeded


class Ledger(Mapping[str, Any]):
    """A mapping that is no dict."""

    def __getitem__(self, name: str) -> Any:
        return {"id": 7}[name]

    def __iter__(self) -> Any:
        return iter(["id"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("order.", "got 'order.'"),
        (".id", "got '.id'"),
        ("order..id", "got 'order..id'"),
        (".", "got '.'"),
        (("tenant", "order."), "got 'order.'"),
        (("tenant", 7), "got 7"),
        ("", "got ''"),
    ],
)
@pytest.mark.parametrize("role", ["key", "scope"])
def test_a_malformed_path_is_refused_when_the_pattern_is_built(role: str, key: Any, said: str) -> None:
    """A word on each side of each dot, in a key and in a scope."""
    with pytest.raises(ConfigurationError, match=f"expected {role} to be") as caught:
        idempotent(**{"key": "x", "ttl": DAY, role: key})
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        (7, "expected scope to be an argument's name, a tuple of names or a function, got 7"),
        ((), "expected scope to name at least one argument, got an empty tuple"),
    ],
)
def test_a_scope_is_said_as_a_key_is(scope: Any, said: str) -> None:
    """And refused as one."""
    with pytest.raises(ConfigurationError) as caught:
        idempotent(key="x", ttl=DAY, scope=scope)
    assert str(caught.value) == said


def test_a_scope_is_no_async_function() -> None:
    """Nobody would await it."""

    async def scope(x: int) -> int:
        return x

    with pytest.raises(ConfigurationError, match="expected scope to be a plain function, got an async one"):
        idempotent(key="x", ttl=DAY, scope=scope)


@pytest.mark.parametrize(("role", "path"), [("key", "oder.id"), ("scope", "oder.tenant"), ("scope", "oder")])
def test_the_first_word_of_a_path_is_an_argument(app: Celery, role: str, path: str) -> None:
    """It is looked for when the task is created."""
    with pytest.raises(ConfigurationError, match=rf"{role} names 'oder', but keeps\(\) takes \(order\)"):
        keeper(app, lambda order: 0, **{"key": "order", role: path})
        app.finalize()


def test_paths_step_into_dicts(app: Celery) -> None:
    """``order.id`` is the work, however else two orders differ, and however deep it stands."""
    one = keeper(app, lambda order: 0, key="order.customer.id")
    keys = [
        run_here(one, order).value
        for order in (
            {"customer": {"id": 1}},
            {"customer": {"id": 1, "name": "n"}, "total": 5},
            {"customer": {"id": 2}},
            {"customer": {"id": "1"}},
        )
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_path_may_stand_among_names(app: Celery) -> None:
    """``("tenant", "order.id")``: both must agree."""
    two = keeper(app, lambda tenant, order: 0, key=("tenant", "order.id"))
    calls = (("a", {"id": 1}), ("a", {"id": 1, "n": 1}), ("b", {"id": 1}), ("a", {"id": 2}))
    keys = [run_here(two, *call).value for call in calls]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_mappings_attributes_are_no_steps(app: Celery) -> None:
    """``order.items`` is what stands under that key, and never the method of a dict."""
    task = keeper(app, lambda order: 0, key="order.items")
    with pytest.raises(InvalidKey, match=r"keeps\(\): key names 'order.items', but order is a dict without 'items'"):
        task.delay({"id": 1})
    assert run_here(task, {"items": 1}).state == "SUCCESS"


@pytest.mark.parametrize("order", [Parcel("p-1"), Ledger(), {"id": "p-1"}])
def test_paths_step_into_mappings_by_key_and_into_objects_by_attribute(app: Celery, order: Any) -> None:
    """What pickle carries arrives as it was sent."""
    assert len(run_here(keeper(app, lambda order: 0, key="order.id"), order).value) == 32


@pytest.mark.parametrize(
    ("key", "order", "said"),
    [
        ("order.id", {"ID": "hunter2"}, "key names 'order.id', but order is a dict without 'id'"),
        ("order.id", None, "key names 'order.id', but order is a NoneType without 'id'"),
        ("order.id", ["hunter2"], "key names 'order.id', but order is a list without 'id'"),
        ("order.a.b", {"a": "hunter2"}, "key names 'order.a.b', but order.a is a str without 'b'"),
        ("order.b", Parcel("hunter2"), "key names 'order.b', but order is a Parcel without 'b'"),
        ("order.weight", Parcel("hunter2"), "key names 'order.weight', and 'weight' of order raised LookupError"),
        ("order.id", {"id": 1.5}, "order.id is a float"),
        ("order.a", {"a": {"b": [1.5]}}, "order.a.b[0] is a float"),
    ],
)
def test_a_step_that_is_not_there_is_told_without_values(app: Celery, key: str, order: Any, said: str) -> None:
    """It names the path, the step and the type of what was there: at ``.delay()``, and nothing is sent."""
    task = keeper(app, lambda order: 0, key=key)
    with pytest.raises(InvalidKey) as caught:
        task.delay(order)
    assert str(caught.value).startswith(f"keeps(): {said}")
    assert "hunter2" not in str(caught.value)
    assert published(app) == []


def test_a_step_that_is_not_there_ends_as_a_letter_in_the_worker(app: Celery) -> None:
    """Sent by name, where nobody could look: it fails with ``InvalidKey``, and nothing runs."""
    task = keeper(app, lambda order: 0, key="order.id")
    outcome = run_here(task, {"ID": 1})
    assert isinstance(outcome.value, InvalidKey)
    assert [letter.error for letter in dead_letters(app, "dead")] == [f"{InvalidKey.__module__}.InvalidKey"]


def test_a_default_is_stepped_into_as_well(app: Celery) -> None:
    """A call that leaves the argument out has the key of one that says the default's value."""
    task = keeper(app, lambda order={"id": 1}: 0, key="order.id")
    assert run_here(task).value == run_here(task, {"id": 1}).value


def test_the_soft_limit_in_a_property_is_the_limit(app: Celery) -> None:
    """It is the limit that failed the task, and not its key."""

    @app.task(shared=False, name="t")
    @idempotent(key="order.size", ttl=DAY)
    def t(order: Any) -> None: ...

    assert isinstance(run_here(t, Parcel("p-1")).value, SoftTimeLimitExceeded)


def model(order: Order, note: str = "") -> str:
    assert isinstance(order, Order)
    return own_key()


model.__annotations__["order"] = Order  # Celery 5.5 does not read annotations that are strings


@pytest.mark.parametrize("strict", [True, False], ids=["strict JSON", "Celery's JSON"])
def test_a_model_and_what_it_is_sent_as_have_one_key(app: Celery, strict: bool) -> None:
    """With ``pydantic=True`` a caller passes the model, a worker receives its dict, and eager mode has the model again."""
    if strict:
        patterns.use_strict_json(app)
    pattern = idempotent(key=("order.id", "order.customer.id"), ttl=DAY, scope="order.customer.id")
    task = app.task(shared=False, pydantic=True, name="modelled", patterns=(pattern,))(model)
    order = Order(id=UUID(int=7), customer=Customer(id=1))
    plain = order.model_dump(mode="json")
    key = run_here(task, plain).value
    assert task.apply((plain,)).get() == key
    if getattr(task, "_dump_pydantic_arguments", None) is None:
        return  # a Celery before 5.7 sends no models
    task.delay(order)
    args, kwargs, _ = body_of(published(app)[0])
    assert run_here(task, *args, **kwargs).value == key
    assert task.apply((order,)).get() == key


def test_the_digests_of_names_functions_and_own_keys_stay() -> None:
    """Keys that a store holds are found by a later release."""
    arguments = {"x": "o-1", "y": [1, {"a": True}]}
    keys: list[Any] = ["x", ("x", "y"), lambda x, y: x]
    made = [idempotent(key=key, ttl=DAY).key_of("shop.charge", arguments, ("o-1", None), {}) for key in keys]
    made.append(idempotent(key="x", ttl=DAY).key_of("shop.charge", arguments, (), {}, "import-17"))
    made.append(idempotent(key="y.a", ttl=DAY).key_of("shop.charge", {"y": {"a": "o-1"}}, (), {}))
    made.append(idempotent(key="x", scope="y", ttl=DAY).key_of("shop.charge", arguments, (), {}))
    assert made == [
        "b4d6808f43eaf581e1a9dfa3e66fbf9e",
        "6d679bb189fbe5747c1caf2f094fdb72",
        "2d97767096751caca25e15ddb4a802df",
        "b5188f8391a5f57571e42863f16ecb0b",
        "2b9c4d8e25f50d2ab5773c40eb752415",
        "304ef43381bf7165439464564ed15373",
    ]


#: Values that are easily taken for each other, and any.
close = st.sampled_from(
    [0, False, 1, True, "1", "a,b", ["a", "b"], [["a"], "b"], {"b": 1}, {"b": "1"}, [], {}, "", b"1"]
)
parts = st.one_of(close, values.filter(lambda value: value is not None))
forms = st.sampled_from(
    ["a", ("a",), ("a", "b"), ("b", "a"), "a.b", ("a.b",), ("a", "b.a"), ("a.b", "b"), ("a.b", "b.a"), "b.a"]
)
calls = st.tuples(
    forms,
    st.one_of(st.none(), forms),
    st.fixed_dictionaries({"a": st.fixed_dictionaries({"b": parts}), "b": st.fixed_dictionaries({"a": parts})}),
    st.one_of(st.none(), st.sampled_from(["1", "names", "a.b"])),
)


def meant(form: Any, arguments: dict[str, Any]) -> Any:
    """What a name, a path or several of them stand for."""
    names = form if isinstance(form, tuple) else (form,)
    found = [
        arguments[first] if not rest else arguments[first][rest] for first, _, rest in (n.partition(".") for n in names)
    ]
    return (names if any("." in name for name in names) else len(names), tuple(map(identity, found)))


@settings(max_examples=1000, deadline=None)
@given(calls, calls)
def test_two_keys_that_differ_never_share(left: Any, right: Any) -> None:
    """Other values, other types, a tuple that is split elsewhere, another path, another scope or none: both ways."""
    keys, told = [], []
    for key, scope, arguments, own in (left, right):
        pattern = idempotent(key=key, scope=scope, ttl=DAY)
        keys.append(pattern.key_of("t", arguments, (), {}, own))
        work = own if own is not None else meant(key, arguments)
        told.append((work, None if scope is None else meant(scope, arguments)))
    assert (keys[0] == keys[1]) == (told[0] == told[1])


def test_tenants_never_meet(app: Celery) -> None:
    """The same key of two tenants is two keys, also where a call brings its own."""
    task = keeper(app, lambda tenant, order: 0, key="order", scope="tenant")
    bare = app.task(shared=False, name="bare", patterns=(idempotent(key="order", ttl=DAY),))(_bare)
    own = {HEADER: {"key": "import-17"}}
    keys = [
        run_here(task, "a", 1).value,
        run_here(task, "b", 1).value,
        run_here(task, "a", 1, headers=own).value,
        run_here(task, "b", 1, headers=own).value,
        run_here(bare, "a", 1).value,
    ]
    assert len(set(keys)) == 5
    assert run_here(task, "a", 2, headers=own).value == keys[2]


def _bare(tenant: str, order: int) -> str:
    return own_key()


@pytest.mark.parametrize(
    "scope", ["tenant", ("tenant",), "order.tenant", ("tenant", "order.tenant"), lambda tenant, order: tenant]
)
def test_a_scope_takes_every_form_of_a_key(app: Celery, scope: Any) -> None:
    """A name, a path, several of them, or a function."""
    task = keeper(app, lambda tenant, order: 0, key="order.id", scope=scope)
    keys = [run_here(task, tenant, {"id": 1, "tenant": tenant}).value for tenant in ("a", "b", "a")]
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(
    ("scope", "args", "said"),
    [
        ("tenant", (None, {}), "keeps(): tenant is None; expected a value that names whose key it is"),
        ("tenant", (1.5, {}), "keeps(): tenant is a float; expected an exact value"),
        ("order.tenant", ("a", {"tenant": None}), "keeps(): order.tenant is None; expected a value that names whose"),
        ("order.tenant", ("a", {}), "keeps(): scope names 'order.tenant', but order is a dict without 'tenant'"),
        (
            lambda tenant, order: None,
            ("a", {}),
            "the scope function of keeps returned None; expected a value that names whose",
        ),
        (lambda tenant, order: order["t"], ("a", {}), "the scope function of keeps raised KeyError"),
    ],
)
@pytest.mark.parametrize("own", [{}, {"idempotency_key": "mine"}, {"headers": {HEADER: {"key": "mine"}}}])
@pytest.mark.parametrize("key", ["tenant", lambda tenant, order: 1], ids=["a plain key", "a function"])
def test_a_call_that_is_nobodys_is_not_sent(app: Celery, key: Any, scope: Any, args: Any, said: str, own: Any) -> None:
    """A tenant that was forgotten would share its keys with all that were: also of a call with its own key."""
    task = keeper(app, lambda tenant, order: 0, key=key, scope=scope)
    with pytest.raises(InvalidKey) as caught:
        task.apply_async(args, **own)
    assert str(caught.value).startswith(said)
    assert published(app) == []


def test_an_own_key_asks_for_no_other(app: Celery) -> None:
    """A call that brings its key is not refused for arguments that would make none, however the key came."""
    task = keeper(app, lambda tenant, order: 0, key="order.id", scope="tenant")
    task.apply_async(("a", {}), idempotency_key="mine")
    task.apply_async(("a", {}), headers={HEADER: {"key": "mine"}})
    assert len(published(app)) == 2


def test_an_own_key_that_is_none_is_not_sent_by_header_either(app: Celery) -> None:
    """By hand as by option."""
    task = keeper(app, lambda order: 0, key="order")
    with pytest.raises(InvalidKey, match="a key of its own that is none"):
        task.apply_async((1,), headers={HEADER: {"key": 7}})
    assert published(app) == []


def test_the_scope_of_a_call_that_is_sent_by_name(app: Celery) -> None:
    """The sender knows neither the task nor its scope; the worker takes it from the arguments."""
    task = keeper(app, lambda tenant, order: 0, key="order", scope="tenant")
    for tenant in ("a", "b"):
        app.send_task("keeps", (tenant, 1), headers={HEADER: {"key": "import-17"}})
    sent = {
        run_here(task, tenant, 1, headers=m["headers"]).value for tenant, m in zip("ab", published(app), strict=True)
    }
    assert len(sent) == 2
    assert isinstance(run_here(task, None, 1, headers={HEADER: {"key": "import-17"}}).value, InvalidKey)


def test_a_rejected_runs_key_that_only_code_can_make_is_given_back_at_once(app: Celery) -> None:
    """The main process, which writes the letter, does not run it; a key that it can make is its own to give back."""
    releases = []

    class Noted(MemoryStore):
        def release(self, *args: Any, **kwargs: Any) -> bool:
            releases.append(args[0])
            return super().release(*args, **kwargs)

    patterns.use_store(app, Noted())

    def rejects(order: Any) -> None:
        raise Reject("not this one", requeue=False)

    for number, (options, order, given_back) in enumerate(
        [
            ({"key": "order.id"}, {"id": 1}, 0),
            ({"key": "order.id"}, Parcel("p-1"), 1),
            ({"key": "order.id", "scope": lambda order: 1}, {"id": 1}, 1),
            ({"key": lambda order: 1, "scope": "order.id"}, {"id": 1}, 1),
        ]
    ):
        pattern = idempotent(ttl=DAY, same=(), **options)
        task = app.task(shared=False, name=f"r{number}", patterns=(pattern, dead_letter("dead")))(rejects)
        releases.clear()
        assert run_here(task, order).state == "REJECTED"
        assert len(releases) == given_back, options
    releases.clear()
    run_here(task, {"id": 1}, headers={HEADER: {"key": "mine"}})
    assert releases == []


def test_a_key_function_is_given_in_eager_mode_what_a_worker_would_give_it(app: Celery) -> None:
    """The dict that the model is sent as."""
    task = app.task(shared=False, pydantic=True, name="m", patterns=(idempotent(key=_id_of, ttl=DAY),))(model)
    order = Order(id=UUID(int=7), customer=Customer(id=1))
    if getattr(task, "_dump_pydantic_arguments", None) is not None:
        assert len(task.apply((order,)).get()) == 32


def _id_of(order: Any, note: str = "") -> Any:
    return order["id"]


def test_tenants_on_a_worker(shop: Floor) -> None:
    """Each tenant's work is done once, with keys of its own making and with those that calls bring."""
    shop.worker()
    placed = shop.task("placed")
    for tenant, number in (("a", 1), ("a", 1), ("b", 1), ("b", 1), ("a", 2)):
        assert placed.delay({"tenant": tenant, "id": number}).get(timeout=20) == f"{tenant} {number}"
    for tenant in ("a", "b"):
        order = {"tenant": tenant, "id": 17}
        placed.apply_async((order,), idempotency_key="import-17").get(timeout=20)
        carried = {"celery_patterns": {"key": "import-17"}}
        sent = shop.app.send_task("placed", (order,), headers=carried, queue=shop.queue)
        assert sent.get(timeout=20) == f"{tenant} 17"
    assert shop.traces.all("placed") == [["a", 1], ["b", 1], ["a", 2], ["a", 17], ["b", 17]]


def test_a_call_without_its_step_on_a_worker(shop: Floor) -> None:
    """Sent by name: a letter that says which step is missing, the worker alive, the next call done."""
    shop.worker()
    for order in ({"tenant": "a"}, {"id": 1}):
        shop.app.send_task("placed", (order,), queue=shop.queue)
    shop.wait(lambda: len(shop.letters()) == 2, what="the letters")
    assert {letter.message for letter in shop.letters()} == {
        "placed(): key names 'order.id', but order is a dict without 'id'",
        "placed(): scope names 'order.tenant', but order is a dict without 'tenant'",
    }
    assert shop.task("placed").delay({"tenant": "a", "id": 1}).get(timeout=20) == "a 1"
    assert shop.traces.count("placed") == 1


def test_the_key_of_a_lost_run_with_path_and_scope_is_free_when_its_letter_stands(shop: Floor) -> None:
    """The main process makes it of what it received, and a call's own key in its scope as well; another tenant's stays."""
    shop.worker()
    task, order = shop.task("ends_scoped"), {"tenant": "a", "id": 1}
    task.apply_async((order, "hard"), time_limit=1)
    task.apply_async((order, "hard"), time_limit=1, idempotency_key="mine")
    shop.wait(lambda: len(shop.letters()) == 2, 30, "the letters")
    assert {letter.reason for letter in shop.letters()} == {"time_limit"}
    assert task.delay(order, "fine").get(timeout=20) == "fine"
    assert task.apply_async((order, "fine"), idempotency_key="mine").get(timeout=20) == "fine"


def test_a_function_that_makes_scopes_is_not_called_by_the_main_process(shop: Floor) -> None:
    """It may be what hung: such a key is free when its lease is over, a call's own key too."""
    worker = shop.worker()
    task, order = shop.task("ends_scoped_by"), {"tenant": "a", "id": 1}
    task.apply_async((order, "hard"), time_limit=1, idempotency_key="mine")
    shop.wait(lambda: len(shop.letters()) == 1, 30, "the letter")
    held = task.apply_async((order, "fine"), idempotency_key="mine")
    shop.wait(lambda: "duplicate_waiting" in worker.text(), 20, "the wait for the key")
    assert shop.traces.count("asked for a scope") >= 2
    assert worker.pid not in shop.traces.all("asked for a scope")
    assert not AsyncResult(held.id, app=shop.app).ready()
