"""CP526 and CP527: what patterns are told that makes them do nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import celery.exceptions

from ..._idempotent import idempotent
from ..._retry import retry
from .._bindings import nodes_of
from .._finding import Rule, Sign, rule
from .._module import Function, Module, called

if TYPE_CHECKING:
    from .._case import Case

#: What gives something else at each call: of uuid, random, secrets, time and datetime.
_CHANCE = frozenset(
    {
        *(
            "uuid1",
            "uuid4",
            "uuid6",
            "uuid7",
            "uuid",
            "random",
            "randint",
            "randrange",
            "getrandbits",
            "choice",
            "urandom",
        ),
        *("token_hex", "token_bytes", "token_urlsafe", "time", "time_ns", "monotonic", "perf_counter", "now", "utcnow"),
    }
)
#: What gives such a thing, as its module is called; a model of the user's has a ``now``, too.
_OF_CHANCE = frozenset(
    {"uuid", "random", "secrets", "time", "datetime", "os", "timezone", "celery.utils", "django.utils.timezone"}
)


@rule(
    "CP526",
    "warning",
    "A retry that waits for nothing that comes",
    "The first failure is the last one: it is final, or a dead letter.",
    upstream="freelawproject/courtlistener#2089",
)
def never_again(case: Case) -> Iterator[Sign]:
    """One attempt, an error that only ``.get()`` raises, or ``on=(A or B)``, which is A alone."""
    for task in case.tasks:
        if task.retry is None:
            continue
        kinds = task.retry.on if isinstance(task.retry.on, tuple) else ()
        if task.retry.attempts == 1:
            yield Sign(
                task.name, "its retry has attempts=1, and the first one is counted", "Write attempts=2, or more."
            )
        elif celery.exceptions.TimeoutError in kinds and TimeoutError not in kinds:
            yield Sign(
                task.name,
                "its retry waits for celery.exceptions.TimeoutError, which is no TimeoutError of Python's: only reading a "
                "result raises it",
                "Take its import away: TimeoutError is Python's own then.",
            )
    for module in case.modules if not isinstance(case.modules, str) else ():
        for call, name, said in _told(module, retry):
            if name == "on" and isinstance(said, ast.BoolOp) and not module.is_excused(call, "CP526"):
                first, last = ast.unparse(said.values[0]), ast.unparse(said.values[-1])
                kept = first if isinstance(said.op, ast.Or) else last
                names = ", ".join(ast.unparse(one) for one in said.values)
                yield Sign(module.place(call), f"on=({ast.unparse(said)}) is {kept} alone", f"Write on=({names}).")


@rule(
    "CP527",
    "error",
    "A key that is another one each time",
    "No call is a duplicate of another: what is sent twice, or delivered twice, is done twice.",
    upstream="triggerdotdev/trigger.dev#4953",
)
def key_by_chance(case: Case) -> Iterator[Sign]:
    """The function that makes the key asks the clock, or takes something by chance."""
    for module in case.source:
        functions = {node.name: node for node in module.tree.body if isinstance(node, Function)}
        for call, name, said in _told(module, idempotent):
            maker = functions.get(said.id) if isinstance(said, ast.Name) else said
            if name not in ("key", "scope") or not isinstance(maker, Function | ast.Lambda):
                continue
            asked = next((one for one in nodes_of(maker) if _is_chance(module, one)), None)
            if asked is not None and not module.is_excused(call, "CP527"):
                yield Sign(
                    module.place(call),
                    f"its {name} is made with {ast.unparse(asked)}",
                    "Make it of what the work is about: of an argument that a repeated call has, too.",
                )


def _is_chance(module: Module, node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or called(node) not in _CHANCE or node.args:
        return False
    return module.whole_name(node.func).rpartition(".")[0].removesuffix(".datetime") in _OF_CHANCE


def _told(module: Module, kind: type[Any]) -> Iterator[tuple[ast.Call, str, ast.expr]]:
    """Each argument that a pattern of this kind is given by its name."""
    for call in module.calls:
        if called(call) == kind.__name__ and module.whole_name(call.func).startswith("celery_patterns."):
            yield from ((call, word.arg, word.value) for word in call.keywords if word.arg)


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
