"""What an expression of the user's source holds where it is used, as far as its own function says."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from ._bindings import Binding, last_binding, names_in, parameters_of, scope_of
from ._module import Function, called

if TYPE_CHECKING:
    from ._case import Case
    from ._module import Module

__all__ = [
    "ERROR",
    "ROWS",
    "SENDS",
    "SIGNATURES",
    "arguments_of",
    "is_canvas",
    "is_canvas_sent",
    "is_rebound",
    "is_result",
    "is_task_itself",
    "made_by",
    "sends",
    "task_name",
]

SENDS = frozenset({"delay", "apply_async", "send_task"})
_MAKES_RESULT = frozenset({"AsyncResult", "GroupResult", "ResultSet"})
_CANVAS = frozenset({"group", "chain", "chord", "signature", "xmap", "starmap", "chunks"})
SIGNATURES = frozenset({"s", "si", "signature", "subtask"})
#: Of a manager or a query: what gives many rows.
ROWS = frozenset({"all", "filter", "exclude", "order_by", "iterator"})
#: What gives a row and whether it was made.
_ROW_AND_MORE = frozenset({"get_or_create", "update_or_create", "aget_or_create", "aupdate_or_create"})
_OF_DICT = frozenset({"values", "items"})
#: What ``with`` gives as it is.
_GIVES_ITSELF = frozenset({"open", "Client", "AsyncClient", "Session", "ClientSession"})
#: So long a chain of variables is followed.
_DEEP = 60
ERROR = ast.Call(func=ast.Name(id="Exception", ctx=ast.Load()), args=[], keywords=[])


def arguments_of(call: ast.Call) -> list[ast.expr]:
    """The arguments that a task is sent with."""
    if called(call) in ("delay", "s", "si"):
        return [*call.args, *(word.value for word in call.keywords if word.arg)]
    if called(call) not in ("apply_async", "send_task"):
        return []
    before = 1 if called(call) == "send_task" else 0
    said = {word.arg: word.value for word in call.keywords if word.arg}
    args = call.args[before] if len(call.args) > before else said.get("args")
    kwargs = call.args[before + 1] if len(call.args) > before + 1 else said.get("kwargs")
    listed = args.elts if isinstance(args, ast.List | ast.Tuple) else []
    named = kwargs.values if isinstance(kwargs, ast.Dict) else []
    if isinstance(kwargs, ast.Call) and called(kwargs) == "dict":
        named = [word.value for word in kwargs.keywords if word.arg]
    return [*listed, *named]


def task_name(case: Case, module: Module, function: ast.expr) -> str | None:
    """The name of the task that an expression stands for; None where it is none that is known."""
    own = module.task_names.get(function.id) if isinstance(function, ast.Name) else None
    found = own or case.written.get(module.whole_name(function))
    root = _root(function)
    if found is None or (isinstance(root, ast.Name) and is_rebound(module, root.id, function)):
        return None
    return found


def _root(node: ast.expr) -> ast.expr:
    """What stands at the beginning of ``a.b.c``."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node


def is_canvas_sent(module: Module, call: ast.Call) -> bool:
    """Whether it sends a canvas: ``group(…)()``, ``(a.s() | b.s())()``, ``job()`` of such a job."""
    made = made_by(module, call.func, call)
    return made is not None and is_canvas(module, made)


def is_canvas(module: Module, node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        sides = (node.left, node.right) if isinstance(node.op, ast.BitOr) else ()
        return any(isinstance(one, ast.Call | ast.BinOp) and is_canvas(module, one) for one in sides)
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute) and node.func.attr in SIGNATURES:
        return True
    if called(node) not in _CANVAS or not module.whole_name(node.func).startswith("celery."):
        return False
    root = _root(node.func)
    return not isinstance(root, ast.Name) or not (is_rebound(module, root.id, node) or _is_set_at_top(module, root.id))


def is_result(case: Case, module: Module, node: ast.expr, at: ast.AST) -> bool:
    """Whether an expression is what was got by sending a task."""
    made = made_by(module, node, at)
    if not isinstance(made, ast.Call):
        return False
    if called(made) in _MAKES_RESULT:
        return _is_celerys_result(case, module, made)
    if called(made) not in SENDS or not isinstance(made.func, ast.Attribute):
        return is_canvas_sent(module, made)
    return sends(case, module, made)


def sends(case: Case, module: Module, call: ast.Call) -> bool:
    """Whether ``x.delay()``, ``x.apply_async()`` or ``x.send_task()`` sends a task: a pool has an ``apply_async()``, too."""
    if called(call) not in SENDS or not isinstance(call.func, ast.Attribute):
        return False
    owner = call.func.value
    if called(call) == "send_task":
        return _is_app(module, owner)
    if task_name(case, module, owner) is not None or is_task_itself(module, owner):
        return True
    made = made_by(module, owner, call)
    return made is not None and is_canvas(module, made)


def is_task_itself(module: Module, node: ast.expr) -> bool:
    """Whether it is what a task's body calls the task."""
    bodies = (module.bodies.get(one) for one in module.around(node))
    return isinstance(node, ast.Name) and any(name == node.id for name in bodies)


def _is_app(module: Module, node: ast.expr) -> bool:
    return module.app_of(node) is not None or called(node) in ("app", "celery", "celery_app", "current_app")


def _is_celerys_result(case: Case, module: Module, made: ast.Call) -> bool:
    """Whether it is one of this app's, and of its backend."""
    for word in made.keywords:
        if word.arg == "backend" or (word.arg == "app" and module.app_of(word.value) is not case.app):
            return False
    if isinstance(made.func, ast.Name):
        return module.imported.get(made.func.id, "").startswith("celery.")
    owner = made.func.value if isinstance(made.func, ast.Attribute) else made.func
    return _is_app(module, owner) or called(owner) == "result" or task_name(case, module, owner) is not None


def made_by(module: Module, node: ast.expr, at: ast.AST, depth: int = 0) -> ast.expr | None:
    """The expression that made a value; None where its function does not say, or says several things.

    Args:
        module: The module.
        node: An expression, or a variable.
        at: Where it is used.
        depth: Of how many others it was found to be made.
    """
    if not isinstance(node, ast.Name | ast.NamedExpr | ast.Subscript):
        return node
    key = (node, at)
    if key not in module.values and depth < _DEEP:
        module.values[key] = None  # what is made of itself is made by nothing
        module.values[key] = _made_by(module, node, at, depth + 1)
    return module.values.get(key)


def _made_by(
    module: Module, node: ast.Name | ast.NamedExpr | ast.Subscript, at: ast.AST, depth: int
) -> ast.expr | None:
    if isinstance(node, ast.NamedExpr):
        return made_by(module, node.value, at, depth)
    found = _item(module, node, at, depth) if isinstance(node, ast.Subscript) else _value_of(module, node.id, at, depth)
    return None if found is None else made_by(module, found, found, depth)


def is_rebound(module: Module, name: str, at: ast.AST) -> bool:
    """Whether a name means something of its function's own there, and not what the module calls so."""
    for scope in module.around(at):
        if isinstance(scope, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) and any(
            name in names_in(loop.target) for loop in scope.generators
        ):
            return True
        if not isinstance(scope, Function | ast.Lambda):
            continue
        if name in parameters_of(scope) or _is_set_in(module, scope, name):
            return True
    return False


def _is_set_at_top(module: Module, name: str) -> bool:
    found = scope_of(module, module.tree).bindings.get(name, ())
    return any(not isinstance(one.node, ast.Import | ast.ImportFrom) for one in found)


def _is_set_in(module: Module, scope: ast.AST, name: str) -> bool:
    # What only the function imports is found among all imports.
    is_modules = name in scope_of(module, module.tree).bindings
    found = scope_of(module, scope).bindings.get(name, ())
    return any(is_modules or not isinstance(one.node, ast.Import | ast.ImportFrom) for one in found)


def _value_of(module: Module, name: str, at: ast.AST, depth: int) -> ast.expr | None:
    """What a variable was set to last before it is used, in the same function or at the module's top."""
    for scope in module.around(at):
        if isinstance(scope, ast.Lambda) and name in parameters_of(scope):
            return None
        if isinstance(scope, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            for loop in scope.generators:
                if name in names_in(loop.target):
                    return _one_of(module, loop.target, loop.iter, name, scope, depth)
        if isinstance(scope, Function | ast.Module):
            found = last_binding(module, scope, name, at)
            if isinstance(found, Binding):
                value = _share(module, found, name, depth)
                changed = _is_full(value) and name in scope_of(module, scope).changes
                return None if changed else value
            if found is False:
                return None
    return None


def _is_full(node: ast.expr | None) -> bool:
    """Whether it is a list, a dict or a set with something in it, which may be gone where it is changed."""
    return (isinstance(node, ast.List | ast.Set) and bool(node.elts)) or (
        isinstance(node, ast.Dict) and bool(node.values)
    )


def _share(module: Module, binding: Binding, name: str, depth: int) -> ast.expr | None:
    node, target = binding.node, binding.target
    if isinstance(node, ast.For | ast.AsyncFor) and target is not None:
        return _one_of(module, target, node.iter, name, node, depth)
    if isinstance(node, ast.ExceptHandler):
        return ERROR
    if isinstance(node, ast.withitem):
        itself = isinstance(target, ast.Name) and called(node.context_expr) in _GIVES_ITSELF
        return node.context_expr if itself else None
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) else None
    if isinstance(target, ast.Name):
        return value
    if not isinstance(target, ast.Tuple | ast.List) or any(isinstance(one, ast.Starred) for one in target.elts):
        return None
    if isinstance(value, ast.Call) and called(value) in _ROW_AND_MORE and name in names_in(target.elts[0]):
        return ast.copy_location(ast.Call(_as_one_row(value.func), value.args, value.keywords), value)
    if isinstance(value, ast.Tuple | ast.List):
        pairs = zip(target.elts, value.elts, strict=False)
        return next((one for part, one in pairs if isinstance(part, ast.Name) and part.id == name), None)
    return None


def _as_one_row(function: ast.expr) -> ast.expr:
    """``Order.objects.get`` for ``Order.objects.get_or_create``."""
    if not isinstance(function, ast.Attribute):
        return function
    return ast.copy_location(ast.Attribute(function.value, "get", ast.Load()), function)


def _one_of(module: Module, target: ast.expr, many: ast.expr, name: str, at: ast.AST, depth: int) -> ast.expr | None:
    """What a loop's variable is in each turn."""
    if isinstance(many, ast.Call) and called(many) == "enumerate" and many.args:
        if not isinstance(target, ast.Tuple) or name not in names_in(target.elts[-1]):
            return None
        target, many = target.elts[-1], many.args[0]
    if isinstance(many, ast.Call) and isinstance(many.func, ast.Attribute) and many.func.attr in _OF_DICT:
        if many.func.attr == "items":
            if not isinstance(target, ast.Tuple) or name not in names_in(target.elts[-1]):
                return None
            target = target.elts[-1]
        many = many.func.value
    return _element(module, many, at, depth) if isinstance(target, ast.Name) else None


def _item(module: Module, node: ast.Subscript, at: ast.AST, depth: int) -> ast.expr | None:
    """What stands under a key or at a place."""
    made = made_by(module, node.value, at, depth)
    if isinstance(node.slice, ast.Slice):
        return None if isinstance(made, ast.List | ast.Tuple) else made
    key = _key(node.slice)
    if isinstance(made, ast.Dict) and made.keys:
        if None in made.keys:
            return None  # {"a": 1, **others}
        pairs = reversed([*zip(made.keys, made.values, strict=True)])
        return next((one for name, one in pairs if isinstance(name, ast.Constant) and name.value == key), None)
    if isinstance(made, ast.List | ast.Tuple) and made.elts:
        if any(isinstance(one, ast.Starred) for one in made.elts):
            return None
        return made.elts[key] if isinstance(key, int) and -len(made.elts) <= key < len(made.elts) else None
    if isinstance(made, ast.Call) and (isinstance(key, str) or isinstance(node.value, ast.Subscript)):
        return None  # a column of a row
    return _element(module, node.value, at, depth)


def _key(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=key):
            return key
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as key)):
            return -key
    return None


def _element(module: Module, many: ast.expr, at: ast.AST, depth: int) -> ast.expr | None:
    """What each of many is: of a list, a tuple, or a dict's values; None where they differ."""
    made = made_by(module, many, at, depth)
    if isinstance(made, ast.ListComp | ast.GeneratorExp | ast.SetComp):
        return made.elt
    if isinstance(made, ast.DictComp):
        return made.value
    if isinstance(made, ast.Call):
        if called(made) in ("list", "tuple", "sorted", "reversed") and len(made.args) == 1:
            return _element(module, made.args[0], made, depth + 1) if depth < _DEEP else None
        return made if called(made) in ROWS else None
    if isinstance(made, ast.Dict):
        inside = made.values
    elif isinstance(made, ast.List | ast.Tuple):
        inside = made.elts
    else:
        return None
    if not inside:
        return _added(module, many, at)
    alike = {(type(one), called(one)) for one in inside}
    return inside[0] if len(alike) == 1 else None


def _added(module: Module, many: ast.expr, at: ast.AST) -> ast.expr | None:
    """What is put into a list or a dict that was made empty, where that is done in one place."""
    if not isinstance(many, ast.Name):
        return None
    scope = next((one for one in module.around(at) if isinstance(one, Function | ast.Module)), None)
    changes = [] if scope is None else scope_of(module, scope).changes.get(many.id, [])
    if len(changes) != 1:
        return None
    match changes[0]:
        case ast.Call(func=ast.Attribute(attr="append"), args=[added]):
            return added
        case ast.Subscript() as place:
            statement = module.parents.get(place)
            return statement.value if isinstance(statement, ast.Assign) else None
    return None
