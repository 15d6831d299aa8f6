"""Rows of a database: which expressions of the user's source are one, or many."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._bindings import Binding, last_binding, names_in, parameters_of, scope_of
from ._module import Function, called
from ._values import ROWS, is_rebound, made_by

if TYPE_CHECKING:
    from ._module import Module

__all__ = ["is_query", "is_row"]

#: Of a manager or a query: what gives one row, and what gives something else.
_ONE_ROW = frozenset(
    {
        *("get", "first", "last", "create", "one", "one_or_none", "earliest", "latest", "create_user", "get_or_404"),
        *("aget", "afirst", "alast", "acreate", "first_or_404"),
    }
)
_NO_ROWS = frozenset(
    {
        "values",
        "values_list",
        "aggregate",
        "count",
        "exists",
        "dates",
        "datetimes",
        "with_entities",
        "scalar",
        "as_pymongo",
    }
)

#: What a form is called, and what something of a row.
_FORM = re.compile(r"(^|_)(form|serializer)$|(Form|Serializer)$")
_PART = re.compile(r"(ids?|pks?|keys?|name|path|url|token|email|count|number)$", re.IGNORECASE)
_NO_MODELS = frozenset({"str", "int", "float", "bool", "bytes", "dict", "list"})
_LOOPS = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp


def is_row(module: Module, node: ast.expr, at: ast.AST) -> bool:
    """Whether an expression is a row that was read from the database, or some of them."""
    if isinstance(node, ast.Attribute) and node.attr == "user" and called(node.value) == "request":
        return _is_request(module, node.value)
    if isinstance(node, ast.Name) and node.id == "instance" and _is_signals(module, at):
        return True
    made = made_by(module, node, at)
    if isinstance(made, ast.List | ast.Tuple | ast.Dict):
        inside = made.values if isinstance(made, ast.Dict) else made.elts
        return any(is_row(module, one, made) for one in inside if not isinstance(one, ast.Starred))
    if isinstance(made, ast.Await):
        made = made.value
    if not isinstance(made, ast.Call):
        return False
    if called(made) == "get_object_or_404":
        return True
    if _is_read_by_session(made) or (_is_saved_form(module, made) and not _is_key(node)):
        return True
    chain = list(_chain(made))
    asks = any(_is_manager(one) for one in chain)
    what = {called(one) for one in chain if isinstance(one, ast.Call)}
    return asks and not what & _NO_ROWS and called(made) in _ONE_ROW | ROWS


def _is_request(module: Module, node: ast.expr) -> bool:
    """Whether ``request`` is a web framework's, and not a message that is called so."""
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "self"
    assert isinstance(node, ast.Name)
    for scope in module.around(node):
        if isinstance(scope, Function):
            given = {
                one.arg: one.annotation for one in (*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs)
            }
            if node.id in given:
                kind = given[node.id]
                return kind is None or called(kind) in ("Request", "HttpRequest", "WSGIRequest", "ASGIRequest")
    return not is_rebound(module, node.id, node)  # Flask's is a module's


def _is_signals(module: Module, at: ast.AST) -> bool:
    """Whether ``instance`` is what Django's signals of a model bring: ``def saved(sender, instance, **more)``."""
    for scope in module.around(at):
        if isinstance(scope, Function) and "instance" in scope_of(module, scope).bindings:
            given = scope.args.args[: len(scope.args.args) - len(scope.args.defaults)]
            said = {one.arg: one.annotation for one in given}
            is_set_once = len(scope_of(module, scope).bindings["instance"]) == 1
            is_other = called(said.get("instance") or ast.Constant(None)) in _NO_MODELS
            return is_set_once and {"sender", "instance"} <= said.keys() and not is_other
        inner = (loop.target for loop in scope.generators) if isinstance(scope, _LOOPS) else ()
        if any("instance" in names_in(one) for one in inner):
            return False
        if isinstance(scope, ast.Lambda) and "instance" in parameters_of(scope):
            return False
    return False


def _is_saved_form(module: Module, made: ast.Call) -> bool:
    """``form.save()`` of Django's, ``serializer.save()`` of the REST framework's."""
    if called(made) != "save" or not isinstance(made.func, ast.Attribute) or made.args:
        return False
    own = (one for one in module.classes.values() if _FORM.search(one.name))
    if any(isinstance(part, Function) and part.name == "save" for one in own for part in one.body):
        return False  # which gives what it likes
    return _FORM.search(called(made.func.value)) is not None


def _is_key(node: ast.expr) -> bool:
    """Whether a variable is called like something of a row."""
    return isinstance(node, ast.Name) and _PART.search(node.id) is not None


def _is_read_by_session(made: ast.Call) -> bool:
    """SQLAlchemy's ``session.get(Order, 1)``."""
    if called(made) != "get" or not isinstance(made.func, ast.Attribute) or len(made.args) != 2:  # noqa: PLR2004
        return False
    what = called(made.args[0])
    return "session" in called(made.func.value).lower() and what[:1].isupper() and not what.isupper()


def _chain(node: ast.expr) -> Iterator[ast.expr]:
    """``Order.objects.filter(…).first()``: the calls and attributes, from the last to the first."""
    while isinstance(node, ast.Call | ast.Attribute):
        yield node
        node = node.func if isinstance(node, ast.Call) else node.value


def _is_manager(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        # SQLAlchemy's session.query(Order); one of columns gives no rows of a model.
        models = [isinstance(one, ast.Name) and one.id[:1].isupper() for one in node.args]
        return called(node) == "query" and bool(models) and all(models)
    if not isinstance(node, ast.Attribute):
        return False
    owner = called(node.value)
    return node.attr in ("objects", "query") and owner[:1].isupper()


def is_query(module: Module, argument: ast.expr, at: ast.AST) -> bool:
    """Whether many rows are given: the query itself, and not one that a loop goes through or a place in it."""
    found: ast.expr | None = argument
    if isinstance(argument, ast.Name):
        scopes = (one for one in module.around(at) if isinstance(one, Function | ast.Module))
        bindings = (last_binding(module, scope, argument.id, at) for scope in scopes)
        binding = next((one for one in bindings if one is not None), None)
        node = binding.node if isinstance(binding, Binding) else None
        found = node.value if isinstance(node, ast.Assign) else None
    return isinstance(found, ast.Call) and called(found) in ROWS
