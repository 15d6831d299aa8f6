"""``celery -A proj patterns claims …``, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import date, timedelta
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from celery import Celery
from celery.bin.celery import celery as celerys_command
from click.testing import CliRunner, Result

import celery_patterns as patterns
from celery_patterns import idempotent
from celery_patterns.stores import MemoryStore, RedisStore, SQLStore
from celery_patterns.typing import Attempt, Claimed, Done

from .harness import ROOT, Floor
from .here import run_here
from .servers import free_port

DAY = timedelta(days=1)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def app(store: MemoryStore) -> Iterator[Celery]:
    made = Celery("claims", broker="memory://", set_as_current=False)
    patterns.use_patterns(made)
    patterns.use_store(made, store)

    @made.task(shared=False, name="shop.charge")
    @idempotent(key="order_id", ttl=DAY, same=("order_id",))
    def charge(order_id: Any, amount: int = 1) -> str:
        if amount < 0:
            raise ValueError("no")
        return "charged"

    @made.task(shared=False, name="shop.pack")
    @idempotent(key=("shelf", "order.id"), scope="tenant", ttl=DAY)
    def pack(order: dict[str, Any], shelf: Any, tenant: str) -> None: ...

    @made.task(shared=False, name="shop.print")
    @idempotent(key=lambda isbn, **_: isbn.replace("-", ""), ttl=DAY)
    def print_(isbn: str) -> None: ...

    @made.task(shared=False, name="shop.plain")
    def plain() -> None: ...

    with closing(made):
        yield made


def run(app: Celery | None, *arguments: str, columns: int = 100) -> Result:
    return CliRunner().invoke(
        celerys_command,
        ["patterns", "claims", *arguments],
        default_map={} if app is None else {"app": app},
        env={"COLUMNS": str(columns)},
        prog_name="celery",
    )


def told(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def hold(store: MemoryStore, app: Celery, order: str, task_id: str, lease: timedelta = timedelta(seconds=30)) -> str:
    """A worker's run has the key of an order."""
    pattern = next(one for one in app.tasks["shop.charge"].plan.patterns if isinstance(one, idempotent))
    name = f"shop.charge:{pattern.key_of('shop.charge', {'order_id': order}, (order,), {})}"
    seen = pattern.fingerprint({"order_id": order})
    assert isinstance(
        store.claim(name, Attempt(f"{task_id}/0", 0, f"{task_id}.0a1b2c3d"), seen, lease=lease, ttl=DAY), Claimed
    )
    return name


@pytest.fixture
def keys(app: Celery, store: MemoryStore, clock: Clock) -> dict[str, str]:
    """One key of each kind."""
    names = {"lost": hold(store, app, "o-lost", "t-lost")}
    clock.now += 100
    names["running"] = hold(store, app, "o-runs", "t-runs")
    clock.now += 5
    run_here(app.tasks["shop.charge"], "o-done", task_id="t-done")
    run_here(app.tasks["shop.charge"], "o-free", -1, task_id="t-free")
    for record in store.records():
        if record.state in ("done", "free"):
            names[record.state] = record.key
    assert len(names) == 4
    return names


def test_the_commands_are_found_under_celerys_own() -> None:
    """Each explains itself without an app."""
    shown = subprocess.run(
        [sys.executable, "-m", "celery", "patterns", "claims", "--help"], check=True, capture_output=True, text=True
    ).stdout
    for word in ("list", "show", "release", "forget", "Which key", "Exit codes"):
        assert word in shown
    for name in ("list", "show", "release", "forget"):
        result = run(None, name, "-h")
        assert (result.exit_code, "Usage: celery patterns claims" in result.output) == (0, True)


def test_without_an_app_or_a_store_it_says_which_is_missing() -> None:
    """And what is expected."""
    result = run(None, "list")
    assert (result.exit_code, "which app? expected celery -A proj patterns claims list" in result.stderr) == (2, True)
    with closing(Celery("bare", broker="memory://", set_as_current=False)) as bare:
        result = run(bare, "list")
    assert (result.exit_code, "the app has none; expected equip(app, store=" in result.stderr) == (2, True)


def test_a_store_that_cannot_be_looked_through_is_named(app: Celery) -> None:
    """One of the user's own has perhaps no such method."""
    steps = {
        name: getattr(MemoryStore, name)
        for name in vars(patterns.typing.Store)
        if name in vars(MemoryStore) and name[0] != "_"
    }
    patterns.use_store(app, type("Mine", (), steps)())
    result = run(app, "list")
    assert (result.exit_code, "the app's store, Mine, cannot be looked through" in result.stderr) == (2, True)


def test_each_key_is_listed(app: Celery, keys: dict[str, str]) -> None:
    """Which task's it is, in what state, for how long, and whose delivery has it."""
    result = run(app, "list")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "4 keys." in text
    for state, name in keys.items():
        assert name.rpartition(":")[2][:8] in text, state
    for piece in ("lost", "running", "done", "free", "t-lost", "t-runs", "t-done", "kept for 1d 0h"):
        assert piece in text
    assert "held for 1m 45s" in text
    assert "held for 5s" in text
    machine = {one["key"]: one for one in told(run(app, "list", "--json"))}
    assert machine.keys() == set(keys.values())
    running = machine[keys["running"]]
    assert (running["task"], running["task_id"], running["state"]) == ("shop.charge", "t-runs", "running")
    assert (running["held_for"], running["lease_left"], running["starts"]) == (5.0, 25.0, 1)
    assert (machine[keys["lost"]]["state"], machine[keys["lost"]]["lease_left"]) == ("lost", 0)


def test_a_task_that_the_app_does_not_have_is_named(app: Celery, keys: dict[str, str]) -> None:
    """Nothing is found of it, which must not pass for nothing held; keys of a task that was removed are still listed."""
    result = run(app, "list", "--task", "charge")
    assert (result.exit_code, result.stdout.strip()) == (0, "0 keys. The app has no task charge.")
    assert run(app, "list", "--task", "shop.plain").stdout.strip() == "0 keys."


def test_a_remembered_failure_is_no_work_that_is_done(app: Celery, database: str) -> None:
    """In each store: who asks whether an order was paid must not be told that it was."""

    @app.task(shared=False, name="shop.pay")
    @idempotent(key="order_id", ttl=DAY, remember=ValueError)
    def pay(order_id: str, declined: bool = False) -> None:
        if declined:
            raise ValueError("no")

    with TemporaryDirectory() as folder:
        in_sql = SQLStore(f"sqlite:///{folder}/keys.db")
        in_sql.create_table()
        for store in (MemoryStore(), RedisStore(database), in_sql):
            patterns.use_store(app, store)
            run_here(pay, "o-1", declined=True)
            run_here(pay, "o-2")
            states = {tuple(sorted(one["state"] for one in told(run(app, "list", "--json"))))}
            assert states == {("done", "failed")}
            (failed,) = told(run(app, "list", "--state", "failed", "--json"))
            assert told(run(app, "show", "shop.pay", "order_id=o-1", "--json"))[0]["key"] == failed["key"]
            assert run(app, "release", "shop.pay", "order_id=o-1").stderr.strip().endswith("it is failed")
            assert run(app, "forget", "-y", "shop.pay", "order_id=o-1").exit_code == 0
            assert [one["state"] for one in told(run(app, "list", "--state", "free", "--json"))] == ["free"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["shop.charge", "order_id=o-done", "amount=1"],
            "the key of shop.charge is not made of amount; expected order_id=value",
        ),
        (["shop.charge", "order=o-done"], "the key of shop.charge is not made of order; expected order_id=value"),
        (
            ["shop.pack", "order.id=1", "shelf=1", "tennant=a"],
            "the key of shop.pack is not made of tennant; expected shelf=value order.id=value tenant=value",
        ),
        (
            ["shop.pack", "idempotency_key=i-1", "shelf=1", "tenant=a"],
            "the key of shop.pack is not made of shelf; expected shelf=value order.id=value tenant=value",
        ),
        (
            ["shop.pack", "order.id=1", "order.number=1", "shelf=1", "tenant=a"],
            "the key of shop.pack is not made of order.number; expected",
        ),
        (
            ["shop.print", "isbn=1", "edition=2"],
            "the key of shop.print is not made of edition; expected name=value for arguments of the task",
        ),
        (["order_id=o-done"], "the app has no task 'order_id=o-done'; expected a task's name before name=value"),
    ],
)
def test_a_name_that_the_key_is_not_made_of_is_wrong_use(
    app: Celery, keys: dict[str, str], words: list[str], said: str
) -> None:
    """It may be misspelt, and another key's work would be forgotten."""
    for command in (["show"], ["forget", "-y"], ["release"]):
        result = run(app, *command, *words)
        assert (result.exit_code, said in result.stderr) == (2, True), result.output


def test_keys_are_chosen_by_task_and_state(app: Celery, keys: dict[str, str]) -> None:
    """And how many are shown is limited."""
    for state, name in keys.items():
        assert [one["key"] for one in told(run(app, "list", "--state", state, "--json"))] == [name]
    assert len(told(run(app, "list", "--task", "shop.charge", "--json"))) == 4
    assert told(run(app, "list", "--task", "shop.char", "--json")) == []
    assert len(told(run(app, "list", "--limit", "3", "--json"))) == 3
    assert "0 keys." in run(app, "list", "--task", "shop.pack").stdout


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_screens_fit(app: Celery, keys: dict[str, str], columns: int) -> None:
    """However wide the terminal is."""
    for words in (("list",), ("show", "shop.charge", "order_id=o-done")):
        result = run(app, *words, columns=columns)
        assert result.exit_code == 0, result.output
        assert max(map(len, result.stdout.splitlines())) <= columns


def test_a_key_is_named_by_what_it_is_made_of(app: Celery, store: MemoryStore) -> None:
    """Of whatever type its values are; by a path, a scope, a function's arguments, or what the call brought."""
    charge, pack = app.tasks["shop.charge"], app.tasks["shop.pack"]
    for number, value in enumerate(("o-1", 17, True, None, Decimal("9.90"), date(2026, 11, 30), uuid.UUID(int=7))):
        run_here(charge, value, task_id=f"t-{number}")
        text = json.dumps(value) if value is True or value is None else value
        (record,) = told(run(app, "show", "shop.charge", f"order_id={text}", "--json"))
        assert record["task_id"] == f"t-{number}", value
    run_here(pack, {"id": "o-1"}, 3, "ada", task_id="t-ada")
    (record,) = told(run(app, "show", "shop.pack", "shelf=3", "order.id=o-1", "tenant=ada", "--json"))
    assert record["task_id"] == "t-ada"
    run_here(app.tasks["shop.print"], "0-306", task_id="t-isbn")
    (record,) = told(run(app, "show", "shop.print", "isbn=0306", "--json"))
    assert record["task_id"] == "t-isbn"
    run_here(charge, "o-2", task_id="t-own", headers={"headers": {"celery_patterns": {"key": "import-17"}}})
    (record,) = told(run(app, "show", "shop.charge", "idempotency_key=import-17", "--json"))
    assert record["task_id"] == "t-own"


def test_defaults_are_those_of_the_task(app: Celery) -> None:
    """An argument that was not given need not be named."""

    @app.task(shared=False, name="shop.defaults")
    @idempotent(key=("order_id", "currency"), ttl=DAY)
    def defaults(order_id: str, currency: str = "EUR") -> None: ...

    run_here(defaults, "o-1", task_id="t-1")
    (record,) = told(run(app, "show", "shop.defaults", "order_id=o-1", "--json"))
    assert record["task_id"] == "t-1"


def test_an_argument_may_be_called_as_a_calls_own_key_is(app: Celery) -> None:
    """Both are looked for."""

    @app.task(shared=False, name="shop.own")
    @idempotent(key="idempotency_key", ttl=DAY)
    def own(idempotency_key: str) -> None: ...

    run_here(own, "k1", task_id="t-1")
    (record,) = told(run(app, "show", "shop.own", "idempotency_key=k1", "--json"))
    assert record["task_id"] == "t-1"


def test_a_task_whose_name_begins_like_another_ones(app: Celery, store: MemoryStore) -> None:
    """Its keys are its own."""
    for name in ("shop:aaaa1111", "shop:sub:bbbb2222"):
        store.claim(name, Attempt("a/0", 0, "a.1"), "fp", lease=DAY, ttl=DAY)
    assert [one["digest"] for one in told(run(app, "list", "--task", "shop", "--json"))] == ["aaaa1111"]


def test_an_id_that_was_not_kept_is_not_made_up(app: Celery, store: MemoryStore) -> None:
    """Nobody is asked for it, and it is said why."""
    task_id = "a-report-of-the-night-with-a-name-that-is-long-" + "x" * 20
    run_here(app.tasks["shop.charge"], "o-1", task_id=task_id)
    (record,) = told(run(app, "show", "shop.charge", "order_id=o-1", "--json"))
    assert (record["task_id"], record["owner"][0]) == (None, "?")
    store.claim("shop.charge:abcd1111", Attempt("a/0", 0, "?1234.5678"), "fp", lease=DAY, ttl=DAY)
    result = run(app, "show", "abcd1111")
    assert "the task's id is not kept" in " ".join(result.stdout.split())
    assert "a task whose id is not kept" in run(app, "release", "abcd1111").stderr


def test_a_broker_that_is_away_hides_no_record(store: MemoryStore) -> None:
    """What the store says is shown, and why nobody could be asked."""
    with closing(Celery("away", broker=f"redis://:hunter2@127.0.0.1:{free_port()}/0", set_as_current=False)) as away:
        away.conf.broker_transport_options = {"socket_connect_timeout": 0.2, "retry_policy": {"max_retries": 0}}
        away.conf.broker_connection_max_retries = 0
        patterns.use_patterns(away)
        patterns.use_store(away, store)
        store.claim("shop.charge:abcd1111", Attempt("a/0", 0, "a.1"), "fp", lease=DAY, ttl=DAY)
        (record,) = told(run(away, "show", "abcd1111", "--json"))
        assert (record["state"], record["workers"]) == ("running", None)
        result = run(away, "show", "abcd1111")
    assert (result.exit_code, "cannot be asked: the broker at" in " ".join(result.stdout.split())) == (0, True)
    assert "hunter2" not in result.output


def test_what_happens_between_the_look_and_the_act_counts(
    app: Celery, store: MemoryStore, monkeypatch: Any, keys: dict[str, str]
) -> None:
    """A dead owner that woke up meanwhile keeps its key; and work that was done again meanwhile is not forgotten."""
    look = store.record

    def then(act: Any) -> Any:
        def record(key: str) -> Any:
            found = look(key)
            act(found)
            return found

        return record

    def wakes(found: Any) -> None:
        assert store.renew(found.key, Attempt("", 0, found.owner), found.fence, lease=DAY, ttl=DAY)

    monkeypatch.setattr(store, "record", then(wakes))
    result = run(app, "release", "shop.charge", "order_id=o-lost")
    assert (result.exit_code, "has changed meanwhile; look again" in result.stderr) == (1, True)

    def again(found: Any) -> None:
        assert store.forget(found.key)
        run_here(app.tasks["shop.charge"], "o-done")

    monkeypatch.setattr(store, "record", then(again))
    result = run(app, "forget", "shop.charge", "order_id=o-done", "--yes")
    assert (result.exit_code, "has changed meanwhile; look again" in result.stderr) == (1, True)
    monkeypatch.undo()
    assert told(run(app, "show", "shop.charge", "order_id=o-done", "--json"))[0]["state"] == "done"


def test_a_key_is_named_by_the_beginning_of_its_digest(app: Celery, keys: dict[str, str]) -> None:
    """As ``list`` shows it, with its task or without."""
    name = keys["done"]
    for short in (name, name[:-4], name.rpartition(":")[2][:8]):
        (record,) = told(run(app, "show", short, "--json"))
        assert record["key"] == name


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["shop.charge", "order_id=o-9"], 1, "the store knows no key of shop.charge with order_id=o-9"),
        (["ffffffffffff"], 1, "the store knows no key that begins with ffffffffffff"),
        (["shop.charge:"], 2, "expected the first characters of a key"),
        (["shop.charge"], 2, "expected name=value behind shop.charge"),
        (["shop.charge", "order_id=1", "order_id=2"], 2, "an argument is given twice"),
        (
            ["shop.pack", "order=x", "order.id=1", "shelf=3", "tenant=a"],
            2,
            "order.id steps into order, which is given as a whole",
        ),
        (["shop.charge", "order_id=\udcff"], 2, "expected text, got"),
        (["shop.nothing", "a=1"], 2, "the app has no task 'shop.nothing'"),
        (["shop.plain", "a=1"], 2, "shop.plain wears no idempotent(), so it has no keys"),
        (["shop.charge", "order_id"], 2, "expected name=value behind the task's name"),
        (
            ["shop.pack", "shelf=3", "tenant=ada"],
            2,
            "the key of shop.pack is made of order, too; expected order=value",
        ),
        (
            ["shop.pack", "shelf=3", "tenant=ada", "order.no=1"],
            2,
            "the key of shop.pack is not made of order.no; expected",
        ),
    ],
)
def test_a_key_that_is_not_there_is_told(
    app: Celery, keys: dict[str, str], words: list[str], code: int, said: str
) -> None:
    """What was wrong, and what was expected."""
    for command in (["show"], ["release"], ["forget", "--yes"]):
        result = run(app, command[0], *words, *command[1:])
        assert (result.exit_code, result.stdout) == (code, "")
        assert said in result.stderr


def test_a_beginning_of_several_digests_is_told(app: Celery, store: MemoryStore) -> None:
    """One of which is meant."""
    for digest in ("abcd1111aaaa", "abcd2222bbbb"):
        store.claim(f"shop.charge:{digest}", Attempt("a/0", 0, "a.1"), "fp", lease=DAY, ttl=DAY)
    result = run(app, "show", "abcd")
    said = "knows 2 keys that begin with abcd, for example abcd1111aaaa and abcd2222bbbb; expected one of them"
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_a_text_that_may_be_of_several_types_is_told(app: Celery) -> None:
    """When there is a key of each."""
    for value in (17, "17"):
        run_here(app.tasks["shop.charge"], value)
    result = run(app, "show", "shop.charge", "order_id=17")
    assert (result.exit_code, "knows 2 keys of shop.charge with order_id=17" in result.stderr) == (2, True)


def test_a_lost_key_is_released(app: Celery, store: MemoryStore, keys: dict[str, str]) -> None:
    """The next message with it runs at once, as a first start."""
    result = run(app, "release", "shop.charge", "order_id=o-lost")
    assert (result.exit_code, result.stdout) == (0, f"shop.charge {keys['lost'].rpartition(':')[2][:8]} is free.\n")
    assert run_here(app.tasks["shop.charge"], "o-lost").value == "charged"


def test_a_living_owner_keeps_its_key(app: Celery, store: MemoryStore, keys: dict[str, str]) -> None:
    """Unless it is forced, and agreed to; then its owner is fenced off."""
    words = ("shop.charge", "order_id=o-runs")
    refused = run(app, "release", *words)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "is held by task t-runs, whose lease is 25 s long still" in refused.stderr
    asked = run(app, "release", *words, "--force")
    assert (asked.exit_code, "nobody is there to be asked. Pass --yes" in asked.stderr) == (2, True)
    (before,) = told(run(app, "show", *words, "--json"))
    forced = run(app, "release", *words, "--force", "--yes")
    assert (forced.exit_code, forced.stdout.endswith("is free.\n")) == (0, True)
    owner = Attempt("t-runs/0", 0, "t-runs.0a1b2c3d")
    assert store.renew(keys["running"], owner, before["fence"], lease=DAY, ttl=DAY) is False
    assert not isinstance(store.complete(keys["running"], owner, "fp", before["fence"], b"1", ttl=DAY), Done)
    assert run_here(app.tasks["shop.charge"], "o-runs").value == "charged"


def test_only_what_is_held_is_released(app: Celery, keys: dict[str, str]) -> None:
    """What is done or free has no owner."""
    for order, state in (("o-done", "done"), ("o-free", "free")):
        result = run(app, "release", "shop.charge", f"order_id={order}", "--force", "--yes")
        assert (result.exit_code, f"it is {state}" in result.stderr) == (1, True)


def test_finished_work_is_forgotten_on_purpose(app: Celery, keys: dict[str, str]) -> None:
    """After it was agreed to; the next message does it again."""
    words = ("shop.charge", "order_id=o-done")
    asked = run(app, "forget", *words)
    assert (asked.exit_code, "nobody is there to be asked" in asked.stderr) == (2, True)
    result = run(app, "forget", *words, "--yes")
    assert (result.exit_code, "is forgotten." in result.stdout) == (0, True)
    ran = run_here(app.tasks["shop.charge"], "o-done", task_id="t-again")
    (record,) = told(run(app, "show", *words, "--json"))
    assert (ran.value, record["task_id"]) == ("charged", "t-again")


def test_only_finished_work_is_forgotten(app: Celery, keys: dict[str, str]) -> None:
    """What runs is released, and what is free need not be."""
    for order, said in (("o-runs", 'it is running. "release" frees it'), ("o-free", "it is free.")):
        result = run(app, "forget", "shop.charge", f"order_id={order}", "--yes")
        assert (result.exit_code, said in result.stderr) == (1, True)


def test_no_terminal_is_done_harm(app: Celery, store: MemoryStore) -> None:
    """By a task's name or id that holds what a terminal obeys."""
    evil = "\x1b[2J\u202e"
    store.claim(f"shop.{evil}:abcd1111", Attempt("a/0", 0, f"{evil}.1"), "fp", lease=DAY, ttl=DAY)
    for words in (("list",), ("show", "abcd"), ("release", "abcd")):
        result = run(app, *words)
        assert "\x1b" not in result.output
        assert "\u202e" not in result.output


def test_who_runs_it_is_asked_of_the_workers(shop: Floor) -> None:
    """Of a key that is held on a real worker: which one runs the task; and when it is taken from it, its work does not count."""
    worker = shop.worker()
    first = shop.task("claim_then_wait").delay("o-1")
    shop.wait(lambda: shop.traces.count("begun"), 20, "the body runs")

    def type_(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", "tests.apps.entry", "patterns", "claims", *words],
            cwd=ROOT,
            env={**__import__("os").environ, **shop.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    shown = type_("show", "claim_then_wait", "order=o-1", "--json")
    assert shown.returncode == 0, shown.stderr
    record = json.loads(shown.stdout)
    assert (record["state"], record["task_id"]) == ("running", first.id)
    assert record["workers"] == [f"{worker.name}, pid {record['workers'][0].split('pid ')[1].split(',')[0]}, active"]
    assert type_("release", "claim_then_wait", "order=o-1").returncode == 1
    assert type_("release", "claim_then_wait", "order=o-1", "--force", "--yes").returncode == 0
    second = shop.task("claim_then_wait").delay("o-1")
    shop.wait(lambda: shop.traces.count("begun") == 2, 20, "the next one runs at once")
    shop.traces.set("go")
    assert second.get(timeout=30) == first.get(timeout=60)
    assert isinstance(patterns._equipment.equipment_of(shop.app).store, RedisStore)
