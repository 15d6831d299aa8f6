"""What a variable of the user's source holds where it is used, as far as its own function says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._module import Function, called

if TYPE_CHECKING:
    from ._module import Module

__all__ = ["SENDS", "arguments_of", "is_canvas_called", "is_model", "is_rebound", "is_result", "made_by", "nodes_of"]

SENDS = frozenset({"delay", "apply_async", "send_task"})
_MAKES_RESULT = frozenset({*SENDS, "AsyncResult", "GroupResult"})
_CANVAS = frozenset({"group", "chain", "chord", "signature", "s", "si"})
#: Of a manager or a query: what gives one row, what gives many, and what gives something else.
_ONE_ROW = frozenset({"get", "first", "last", "create", "one", "one_or_none", "earliest", "latest", "scalar_one"})
_ROWS = frozenset({"all", "filter", "exclude", "order_by", "iterator"})
_NO_ROWS = frozenset({"values", "values_list", "aggregate", "count", "exists", "dates", "datetimes"})
_OF_DICT = frozenset({"values", "items"})
_SOMETHING = ast.Constant(value=None)
_Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef


def nodes_of(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in it, without what is called later or elsewhere: functions and classes that are defined in it."""
    waiting = list(ast.iter_child_nodes(node))
    while waiting:
        one = waiting.pop()
        yield one
        if not isinstance(one, _Scope):
            waiting.extend(ast.iter_child_nodes(one))


def arguments_of(call: ast.Call) -> list[ast.expr]:
    """The arguments that a task is sent with."""
    if called(call) in ("delay", "s", "si"):
        return [*call.args, *(word.value for word in call.keywords if word.arg)]
    if called(call) != "apply_async":
        return []
    said = {word.arg: word.value for word in call.keywords if word.arg}
    args = call.args[0] if call.args else said.get("args")
    kwargs = call.args[1] if len(call.args) > 1 else said.get("kwargs")
    listed = args.elts if isinstance(args, ast.List | ast.Tuple) else []
    named = kwargs.values if isinstance(kwargs, ast.Dict) else []
    return [*listed, *named]


def is_canvas_called(call: ast.Call) -> bool:
    """Whether it sends a canvas: ``group(…)()``, ``(a.s() | b.s())()``."""
    made = call.func
    if isinstance(made, ast.BinOp):
        return any(isinstance(one, ast.Call) and called(one) in _CANVAS for one in ast.walk(made))
    return isinstance(made, ast.Call) and called(made) in _CANVAS


def is_result(module: Module, node: ast.expr, at: ast.AST) -> bool:
    """Whether an expression is what was got by sending a task."""
    made = made_by(module, node, at)
    return isinstance(made, ast.Call) and (called(made) in _MAKES_RESULT or is_canvas_called(made))


def is_model(module: Module, node: ast.expr, at: ast.AST) -> bool:
    """Whether an expression is a row that was read from the database."""
    if ast.unparse(node) == "request.user":
        return True
    made = made_by(module, node, at)
    if not isinstance(made, ast.Call):
        return False
    if called(made) == "get_object_or_404":
        return True
    chain = list(_chain(made))
    asks = any(_is_manager(one) for one in chain)
    what = {called(one) for one in chain if isinstance(one, ast.Call)}
    # A loop goes through many rows, and made_by() gives what it goes through.
    return asks and not what & _NO_ROWS and called(made) in (_ONE_ROW if made is node else _ONE_ROW | _ROWS)


def _chain(node: ast.expr) -> Iterator[ast.expr]:
    """``Order.objects.filter(…).first()``: the calls and attributes, from the last to the first."""
    while isinstance(node, ast.Call | ast.Attribute):
        yield node
        node = node.func if isinstance(node, ast.Call) else node.value


def _is_manager(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return called(node) == "query"  # SQLAlchemy's session.query(Order)
    if not isinstance(node, ast.Attribute):
        return False
    owner = called(node.value)
    return node.attr == "objects" or (node.attr == "query" and owner[:1].isupper())


def made_by(module: Module, node: ast.expr, at: ast.AST) -> ast.expr | None:
    """The expression that made a value; None where its function does not say.

    Args:
        module: The module.
        node: An expression, or a variable.
        at: Where it is used.
    """
    for _ in range(10):  # a variable that is set from another one
        if isinstance(node, ast.NamedExpr):
            node = node.value
        if isinstance(node, ast.Subscript):
            found = _item(module, node, at)
        elif isinstance(node, ast.Name):
            found = _value_of(module, node.id, at)
        else:
            return node
        if found is None:
            return None
        node, at = found, found
    return None


def is_rebound(module: Module, name: str, at: ast.AST) -> bool:
    """Whether a name means something of its function's own there, and not what the module calls so."""
    for scope in module.around(at):
        if isinstance(scope, Function | ast.Lambda) and (name in _parameters(scope) or _is_set_in(module, scope, name)):
            return True
    return False


def _is_set_in(module: Module, scope: ast.AST, name: str) -> bool:
    # What only the function imports is found among all imports.
    imported = not any(name in _bound_otherwise(one) for one in module.tree.body)
    nodes = (node for _, _, node in _sets(scope, name))
    return any(not (imported and isinstance(node, ast.Import | ast.ImportFrom)) for node in nodes)


def _value_of(module: Module, name: str, at: ast.AST) -> ast.expr | None:
    """What a variable was set to last before it is used, in the same function or at the module's top."""
    for scope in module.around(at):
        if isinstance(scope, ast.Lambda) and name in _parameters(scope):
            return None
        if isinstance(scope, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            for loop in scope.generators:
                if name in _names(loop.target):
                    return _one_of(module, loop.target, loop.iter, name, scope)
        if isinstance(scope, Function | ast.Module):
            sets = [one for one in _sets(scope, name) if one[0] < getattr(at, "lineno", 0)]
            if sets:
                _, target, value = max(sets, key=lambda one: one[0])
                return _share(module, target, value, name)
            if isinstance(scope, Function) and name in _parameters(scope):
                return None
    return None


def _sets(scope: ast.AST, name: str) -> Iterator[tuple[float, ast.expr, ast.AST]]:
    """Where it is set: the line, what is set there, and from what."""
    for node in nodes_of(scope):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Assign):
            targets: list[ast.expr] = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr | ast.For | ast.AsyncFor):
            # A loop's variable is set on the loop's own line, and used below it; so is one that := sets.
            targets, line = [node.target], line - 0.5 if isinstance(node, ast.NamedExpr) else line
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            targets, line = [node.optional_vars], node.optional_vars.lineno
        elif name in _bound_otherwise(node):
            yield line, _SOMETHING, node
            continue
        else:
            continue
        yield from ((line, target, node) for target in targets if name in _names(target))


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


def _share(module: Module, target: ast.expr, node: ast.AST, name: str) -> ast.expr | None:
    if isinstance(node, ast.For | ast.AsyncFor):
        return _one_of(module, target, node.iter, name, node)
    if isinstance(node, ast.withitem):
        return node.context_expr if isinstance(target, ast.Name) else None
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) else None
    if isinstance(target, ast.Name):
        return value
    if isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
        pairs = zip(target.elts, value.elts, strict=False)
        return next((one for part, one in pairs if name in _names(part)), None)
    return None


def _one_of(module: Module, target: ast.expr, many: ast.expr, name: str, at: ast.AST) -> ast.expr | None:
    """What a loop's variable is in each turn."""
    if isinstance(many, ast.Call) and called(many) == "enumerate" and many.args:
        if not isinstance(target, ast.Tuple) or name not in _names(target.elts[-1]):
            return None
        target, many = target.elts[-1], many.args[0]
    if isinstance(many, ast.Call) and isinstance(many.func, ast.Attribute) and many.func.attr in _OF_DICT:
        if many.func.attr == "items":
            if not isinstance(target, ast.Tuple) or name not in _names(target.elts[-1]):
                return None
            target = target.elts[-1]
        many = many.func.value
    return _element(module, many, at) if isinstance(target, ast.Name) else None


def _item(module: Module, node: ast.Subscript, at: ast.AST) -> ast.expr | None:
    """What stands under a key or at a place."""
    made = made_by(module, node.value, at)
    key = node.slice.value if isinstance(node.slice, ast.Constant) else None
    if isinstance(made, ast.Dict) and made.keys:
        pairs = zip(made.keys, made.values, strict=True)
        return next((one for name, one in pairs if isinstance(name, ast.Constant) and name.value == key), None)
    if isinstance(made, ast.List | ast.Tuple) and isinstance(key, int) and -len(made.elts) <= key < len(made.elts):
        return made.elts[key]
    return _element(module, node.value, at)


def _element(module: Module, many: ast.expr, at: ast.AST) -> ast.expr | None:
    """What one of many is: of a list, a tuple, or a dict's values."""
    made = made_by(module, many, at)
    if isinstance(made, ast.ListComp | ast.GeneratorExp | ast.SetComp):
        return made.elt
    if isinstance(made, ast.DictComp):
        return made.value
    inside = (
        made.values if isinstance(made, ast.Dict) else made.elts if isinstance(made, ast.List | ast.Tuple) else None
    )
    if inside is not None:
        return inside[0] if inside else _added(module, many, at)
    return made if isinstance(made, ast.Call) and called(made) in _ROWS else None


def _added(module: Module, many: ast.expr, at: ast.AST) -> ast.expr | None:
    """What is put into a list or a dict that was made empty: by ``append()``, or under a key."""
    if not isinstance(many, ast.Name):
        return None
    for scope in module.around(at):
        if not isinstance(scope, Function | ast.Module):
            continue
        for node in nodes_of(scope):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"), args=[added]) if (
                    name == many.id
                ):
                    return added
                case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name))], value=added) if name == many.id:
                    return added
        return None
    return None


def _names(target: ast.expr) -> set[str]:
    """The variables that are set; in ``rows[key] = …`` none is."""
    return {one.id for one in ast.walk(target) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def _parameters(function: Function | ast.Lambda) -> set[str]:
    given = function.args
    each = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {one.arg for one in each if one is not None}
