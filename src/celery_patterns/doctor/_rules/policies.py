"""CP526 and CP527: what patterns are told that makes them do nothing."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import celery.exceptions

from ..._idempotent import idempotent
from ..._retry import retry
from .._finding import Rule, Sign, rule
from .._module import Function, Module, called
from .._values import is_rebound

if TYPE_CHECKING:
    from .._case import Case

#: What gives something else at each call, and where it stands.
_CHANCE = {
    **dict.fromkeys(("uuid1", "uuid4", "uuid6", "uuid7"), ("uuid",)),
    **dict.fromkeys(("random", "randint", "randrange", "getrandbits", "choice"), ("random", "secrets")),
    **dict.fromkeys(("token_hex", "token_bytes", "token_urlsafe"), ("secrets",)),
    **dict.fromkeys(("time", "time_ns", "monotonic", "perf_counter"), ("time",)),
    **dict.fromkeys(("now", "utcnow"), ("datetime.datetime", "django.utils.timezone")),
    "uuid": ("celery.utils",),
    "urandom": ("os",),
}
_READS = frozenset({"get", "join", "join_native", "wait"})


@rule(
    "CP526",
    "warning",
    "A retry that waits for nothing that comes",
    "The first failure is the last one: it is final, or a dead letter.",
    upstream="freelawproject/courtlistener#2089",
)
def never_again(case: Case) -> Iterator[Sign]:
    """``attempts=1``, an error that only ``.get()`` raises, or ``on=(A or B)``, which is A alone."""
    for module in case.source:
        for call, name, said in _told(module, retry):
            found = _in_vain(module, name, said)
            if found is not None and not module.is_excused(call, "CP526"):
                yield Sign(module.place(call), *found)


def _in_vain(module: Module, name: str, said: ast.expr) -> tuple[str, str] | None:
    if name == "attempts" and isinstance(said, ast.Constant) and said.value == 1:
        cure = "Write attempts=2, or more. What a base retries, without(retry) takes away."
        return "attempts=1, and the first one is counted", cure
    if name != "on":
        return None
    if isinstance(said, ast.BoolOp) and all(_is_error(module, one) for one in said.values):
        kept = said.values[0] if isinstance(said.op, ast.Or) else said.values[-1]
        names = ", ".join(ast.unparse(one) for one in said.values)
        return f"on=({ast.unparse(said)}) is {ast.unparse(kept)} alone", f"Write on=({names})."
    kinds = said.elts if isinstance(said, ast.Tuple) else [said]
    stands = [module.stands(one.id) or getattr(builtins, one.id, None) for one in kinds if isinstance(one, ast.Name)]
    is_covered = any(isinstance(one, type) and issubclass(TimeoutError, one) for one in stands)
    is_read = any(one.attr in _READS for one in module.attributes)
    if module.stands("TimeoutError") is not celery.exceptions.TimeoutError or is_covered or is_read:
        return None
    if celery.exceptions.TimeoutError not in stands:
        return None
    what = "TimeoutError is celery.exceptions' here, which is raised by reading a result, and is none of Python's"
    return what, "Take its import away: TimeoutError is Python's own then."


def _is_error(module: Module, node: ast.expr) -> bool:
    found = module.stands(node.id) or getattr(builtins, node.id, None) if isinstance(node, ast.Name) else None
    return isinstance(found, type) and issubclass(found, BaseException)


@rule(
    "CP527",
    "error",
    "A key that is another one each time",
    "No call is a duplicate of another: what is sent twice, or delivered twice, is done twice.",
    upstream="triggerdotdev/trigger.dev#4953",
)
def key_by_chance(case: Case) -> Iterator[Sign]:
    """What the key's function returns is made with the clock, or by chance."""
    for module in case.source:
        functions = {node.name: node for node in module.tree.body if isinstance(node, Function)}
        for call, name, said in _told(module, idempotent):
            maker = (
                functions.get(said.id) if isinstance(said, ast.Name) and not is_rebound(module, said.id, said) else said
            )
            if name not in ("key", "scope") or not isinstance(maker, Function | ast.Lambda):
                continue
            asked = next((one for one in ast.walk(maker) if _is_by_chance(module, maker, one)), None)
            if asked is not None and not module.is_excused(call, "CP527"):
                yield Sign(
                    module.place(call),
                    f"its {name} is made with {ast.unparse(asked)}",
                    "Make it of what the work is about: of an argument that a repeated call has, too.",
                )


def _is_by_chance(module: Module, maker: ast.AST, node: ast.AST) -> bool:
    """Whether a call gives what cannot be foreseen, and that is a part of the key as it is, whatever else is given."""
    homes = _CHANCE.get(called(node), ()) if isinstance(node, ast.Call) else ()
    if not homes or not isinstance(node, ast.Call) or module.whole_name(node.func).rpartition(".")[0] not in homes:
        return False
    root = node.func
    while isinstance(root, ast.Attribute):
        root = root.value
    if not isinstance(root, ast.Name) or root.id not in module.imported or is_rebound(module, root.id, node):
        return False
    is_clock = homes == ("time",) or "datetime.datetime" in homes
    for around in module.around(node):
        if around is maker:
            return isinstance(maker, ast.Lambda)
        if isinstance(around, ast.Return):
            return True
        if isinstance(around, ast.BoolOp | ast.IfExp | ast.Lambda | Function | ast.stmt):
            return False  # on a condition, or not what is returned
        # A day, an hour: of the clock a part may be what is meant.
        rounds = ast.BinOp | ast.Attribute | ast.FormattedValue
        if is_clock and isinstance(around, rounds) and not _is_plain(around):
            return False
    return False


def _is_plain(node: ast.AST) -> bool:
    """``f"{now()}"`` and ``now().isoformat()`` hold all of it."""
    if isinstance(node, ast.FormattedValue):
        return node.format_spec is None
    return isinstance(node, ast.Attribute) and node.attr in ("isoformat", "timestamp", "hex")


def _told(module: Module, kind: type[Any]) -> Iterator[tuple[ast.Call, str, ast.expr]]:
    """Each argument that a pattern of this kind is given by its name."""
    for call in module.calls:
        named = module.stands(call.func.id) if isinstance(call.func, ast.Name) else None
        if named is kind or module.whole_name(call.func) == f"celery_patterns.{kind.__name__}":
            yield from ((call, word.arg, word.value) for word in call.keywords if word.arg)


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
