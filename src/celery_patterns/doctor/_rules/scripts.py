"""CP514, CP521 and CP522: what a file sends as it is run or imported. The source is parsed, and never imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._finding import Rule, Sign, rule
from .._module import Function, Module, asks_for_main, called
from .._values import is_canvas_sent, sends

if TYPE_CHECKING:
    from .._case import Case


@rule(
    "CP514",
    "error",
    "A script whose tasks have other names than the worker's",
    "The worker does not know the task, and throws it away.",
    upstream="celery/celery#3989",
)
def sends_as_main(case: Case) -> Iterator[Sign]:
    """A task of the same file is sent under ``__main__``, where Celery names it after the app and not after the file."""
    for module in case.source:
        for call in module.calls:
            if not _is_under_main(module, call) or not sends(case, module, call):
                continue
            owner = call.func.value if isinstance(call.func, ast.Attribute) else None
            function = owner.id if isinstance(owner, ast.Name) and owner.id in module.task_names else ""
            known = module.task_names.get(function, "")
            app = "__main__" if _is_called_as_its_file(module) else case.app.main or "__main__"
            sent = f"{app}.{function}"
            if known != f"{module.name}.{function}" or known not in case.by_name or sent in case.by_name:
                continue  # named by hand, another app's, or known by both names
            if not module.is_excused(call, "CP514"):
                yield Sign(
                    module.place(call),
                    f"run as a script, it sends {sent}, and the worker knows {known}",
                    f'Write Celery("{module.name}"), or name={known!r} at the task; or send it from another file.',
                )


def _is_called_as_its_file(module: Module) -> bool:
    """Whether it makes its app by ``Celery(__name__)``, which is another name in a script."""
    made = (call.args[0] for call in module.calls if called(call) == "Celery" and call.args)
    return any(isinstance(one, ast.Name) and one.id == "__name__" for one in made)


@rule(
    "CP521",
    "error",
    "A guard that is never true",
    "A script that is run is called __main__: what stands there never happens.",
    upstream="internetarchive/openlibrary-client#232",
)
def never_main(case: Case) -> Iterator[Sign]:
    """``if __name__ == "main":``, around what sends or calls a task."""
    for module in case.source:
        for node in module.parents:
            if not isinstance(node, ast.If) or asks_for_main(node) or module.parents[node] is not module.tree:
                continue
            said = _name_asked(node.test)
            if said.strip("_ ").lower() == "main" and not module.is_excused(node, "CP521"):
                yield Sign(module.place(node), f'__name__ is never "{said}"', 'Write if __name__ == "__main__":')


def _name_asked(test: ast.expr) -> str:
    """``x`` of ``__name__ == "x"``."""
    match test:
        case ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value=str(said))]):
            return said
    return ""


@rule(
    "CP522",
    "warning",
    "A task that each import sends",
    "Each process that imports the file sends it: a worker, too, whenever it starts.",
    upstream="celery/celery#1018",
)
def sends_at_import(case: Case) -> Iterator[Sign]:
    """``.delay()`` at the top of a file that was imported, on no condition."""
    for module in case.source:
        for call in module.calls if module.is_loaded else ():
            if not sends(case, module, call) and not is_canvas_sent(module, call):
                continue
            around = (
                isinstance(one, Function | ast.Lambda | ast.If | ast.IfExp | ast.Try) for one in module.around(call)
            )
            if not any(around) and not module.is_excused(call, "CP522"):
                yield Sign(
                    module.place(call),
                    f".{called(call)}() stands where the file is imported",
                    'Put it under if __name__ == "__main__":, or into a function.',
                )


def _is_under_main(module: Module, call: ast.Call) -> bool:
    around = [*module.around(call)]
    return any(map(asks_for_main, around)) and not any(isinstance(one, Function) for one in around)


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
