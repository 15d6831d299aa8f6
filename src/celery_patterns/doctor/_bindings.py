"""Where the variables of a function or a module are set, and what they hold is changed: each scope is read once."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._module import Function

if TYPE_CHECKING:
    from ._module import Module

__all__ = ["Binding", "Scope", "is_passed", "last_binding", "names_in", "nodes_of", "parameters_of", "scope_of"]

#: What changes a list, a dict or a set.
_CHANGES = frozenset(
    {
        "append",
        "extend",
        "insert",
        "update",
        "setdefault",
        "pop",
        "popitem",
        "clear",
        "remove",
        "add",
        "discard",
        "sort",
    }
)
_Opens = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef


@dataclass(frozen=True)
class Binding:
    """One place in which a variable is set.

    Attributes:
        line: Behind which line it holds.
        target: What stands on the left; None where an import, a handler, a pattern or a definition sets it.
        node: The statement, or the part of it, that sets it.
    """

    line: float
    target: ast.expr | None
    node: ast.AST


@dataclass
class Scope:
    """A function or a module.

    Attributes:
        bindings: Where each variable is set, in the order of the lines.
        changes: Where what a variable holds is changed: ``rows.append(…)``, ``rows[key] = …``.
    """

    bindings: dict[str, list[Binding]] = field(default_factory=lambda: defaultdict(list))
    changes: dict[str, list[ast.AST]] = field(default_factory=lambda: defaultdict(list))


def nodes_of(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in it, without what is called later or elsewhere: functions and classes that are defined in it."""
    waiting = list(ast.iter_child_nodes(node))
    while waiting:
        one = waiting.pop()
        yield one
        if not isinstance(one, _Opens):
            waiting.extend(ast.iter_child_nodes(one))


def scope_of(module: Module, node: ast.AST) -> Scope:
    """What is known of a function, or of the module."""
    known = module.scopes.get(node)
    if known is None:
        known = module.scopes[node] = _read(node)
    return known


def last_binding(module: Module, scope: ast.AST, name: str, at: ast.AST) -> Binding | bool | None:
    """The one that holds where a variable is used; None where none is before it, and False where nobody can say which."""
    each = scope_of(module, scope).bindings.get(name, [])
    if isinstance(scope, ast.Module) and name in module.globals:
        return False
    runs_later = isinstance(scope, ast.Module) and any(isinstance(one, Function) for one in module.around(at))
    line = getattr(at, "lineno", 0)
    before = [one for one in each if runs_later or one.line < line]
    if not before:
        return None
    if runs_later and len(before) > 1:
        return False  # when the function is called, any of them may hold
    last = before[-1]
    return last if len(before) == 1 or is_passed(module, last.node, at) else False


def names_in(target: ast.expr) -> set[str]:
    """The variables that are set; in ``rows[key] = …`` none is."""
    return {one.id for one in ast.walk(target) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def parameters_of(function: Function | ast.Lambda) -> set[str]:
    given = function.args
    each = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {one.arg for one in each if one is not None}


def _read(node: ast.AST) -> Scope:
    found = Scope()
    if isinstance(node, Function):
        for name in parameters_of(node):
            found.bindings[name].append(Binding(float(node.lineno), None, node.args))
    for one in nodes_of(node):
        for line, target in _targets(one):
            for name in names_in(target):
                found.bindings[name].append(Binding(line, target, one))
        for name in _bound_otherwise(one):
            found.bindings[name].append(Binding(getattr(one, "lineno", 0), None, one))
        for name in _changed(one):
            found.changes[name].append(one)
    for each in found.bindings.values():
        each.sort(key=lambda binding: binding.line)
    return found


def _targets(node: ast.AST) -> Iterator[tuple[float, ast.expr]]:
    """What is set there, and behind which line it holds: in the statement itself it does not yet."""
    end = float(getattr(node, "end_lineno", 0) or 0)
    if isinstance(node, ast.Assign):
        yield from ((end, target) for target in node.targets)
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        yield end, node.target
    elif isinstance(node, ast.NamedExpr):
        yield end - 0.5, node.target
    elif isinstance(node, ast.For | ast.AsyncFor):
        yield float(node.iter.end_lineno or 0), node.target
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield float(node.optional_vars.end_lineno or 0), node.optional_vars


def _bound_otherwise(node: ast.AST) -> set[str]:
    """Names that an import, a handler, a pattern or a definition binds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {one.asname or one.name.partition(".")[0] for one in node.names}
    if isinstance(node, ast.MatchMapping):
        return {node.rest} if node.rest else set()
    if isinstance(
        node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    ):
        return {node.name} if node.name else set()
    return set()


def _changed(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if attr in _CHANGES:
            yield name
        case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
            yield name


def is_passed(module: Module, node: ast.AST, at: ast.AST) -> bool:
    """Whether each way to a place goes through the statement: not so where that stands in a branch of its own."""
    statement = node
    while not isinstance(statement, ast.stmt | ast.ExceptHandler | ast.match_case) and statement in module.parents:
        statement = module.parents[statement]
    parent = module.parents.get(statement)
    inside = {at, *module.around(at)}
    if parent not in inside:
        return False
    blocks: Mapping[str, object] = vars(parent)
    block = next((one for one in blocks.values() if isinstance(one, list) and statement in one), None)
    return block is None or any(one in inside for one in block) or isinstance(parent, Function | ast.Module)
