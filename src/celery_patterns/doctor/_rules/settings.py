"""CP4: the app's settings, beside what the tasks need."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from celery.app.defaults import SETTING_KEYS
from kombu.exceptions import SerializerNotInstalled
from kombu.serialization import dumps, registry

from ..._queues import dead_queue
from .._finding import Rule, Sign, rule

if TYPE_CHECKING:
    from .._case import Case


@rule(
    "CP403",
    "warning",
    "Messages that may be lost as they are sent",
    "Where the broker does not take a message, full or cut off, .delay() returns as if it did, and the task is gone.",
    upstream="celery/celery#5410",
)
def unconfirmed(case: Case) -> Iterator[Sign]:
    """Tasks promise that nothing is lost, and RabbitMQ is not asked to confirm what is sent."""
    promised = [task for task in case.tasks if task.promises]
    if case.transport == "amqp" and promised and not case.transport_options.get("confirm_publish"):
        yield Sign(
            case.spelled("broker_transport_options"),
            f"{promised[0].name} wears {promised[0].promises}, and confirm_publish is off",
            case.option_line("confirm_publish", True),
        )


@rule(
    "CP404",
    "error",
    "Delays on a quorum queue behind a direct exchange",
    "A worker holds what waits without taking more: one task that waits stops all others until its time has come.",
    upstream="ITISFoundation/osparc-simcore#8638",
)
def blocks_on_delay(case: Case) -> Iterator[Sign]:
    """Celery can delay messages in RabbitMQ itself only behind a topic exchange."""
    if case.transport != "amqp":
        return
    for task in case.tasks:
        queue = case.queue_of(task.queue)
        if queue is None or not task.longest_wait or not case.is_quorum(queue):
            continue
        if queue.exchange is None or queue.exchange.type == "direct":
            yield Sign(
                task.name,
                f"its queue {queue.name} is a quorum queue behind a direct exchange, and its attempts wait",
                'Declare the queue with Exchange("tasks", type="topic"), or set '
                f"{case.line('task_default_exchange_type', repr('topic'))}.",
            )


@rule(
    "CP407",
    "error",
    "Tasks that run in the caller",
    "No worker is used: a request waits for each task that it sends, and retries, limits and letters do nothing.",
    upstream="cookiecutter/cookiecutter-django#1821",
    production=True,
)
def eager(case: Case) -> Iterator[Sign]:
    """A setting that is for tests was left on."""
    if case.conf.task_always_eager:
        where = case.spelled("task_always_eager")
        yield Sign(where, "task_always_eager=True", "Take it away; set it in the tests' settings only.")


@rule(
    "CP412",
    "hint",
    "Results that are kept for ever",
    "The result backend grows with each task, until it is full.",
    upstream="celery/celery#7801",
)
def kept_for_ever(case: Case) -> Iterator[Sign]:
    """``result_expires`` is switched off."""
    storing = [task for task in case.tasks if not task.task.ignore_result]
    if case.keeps_results and storing and not case.conf.result_expires:
        yield Sign(
            case.spelled("result_expires"),
            f"result_expires={case.conf.result_expires!r}, and {storing[0].name} stores its results",
            f"Set {case.line('result_expires', '86400')}, or ignore_result=True where nobody reads them.",
        )


@rule(
    "CP413",
    "hint",
    "Waiting tasks fill a worker's memory",
    "A worker takes every message that waits, about 9 KB each, past its prefetch: 100,000 are 0.9 GB.",
    upstream="celery/celery#2218",
    production=True,
)
def unlimited_eta(case: Case) -> Iterator[Sign]:
    """Attempts wait in a worker, and ``worker_eta_task_limit`` is not set."""
    waiting = [task for task in case.tasks if task.longest_wait]
    if waiting and not case.delays_natively and not case.conf.get("worker_eta_task_limit"):
        yield Sign(
            case.spelled("worker_eta_task_limit"),
            f"{waiting[0].name} waits up to {waiting[0].longest_wait:g} s between attempts, and nothing limits how many do",
            f"Set {case.line('worker_eta_task_limit', '10000')} (Celery 5.6 or later).",
        )


@rule(
    "CP417",
    "hint",
    "Events that each task sends",
    "A worker sends three messages more for each task, received, started and done, whether anybody reads them or not.",
    upstream="celery/celery#1053",
    production=True,
)
def sends_events(case: Case) -> Iterator[Sign]:
    """Task events are on, by ``worker_send_task_events``, or by a worker's ``-E`` where one was heard in the last second."""
    setting = case.spelled("worker_send_task_events")
    told = "Where no monitor reads them (Flower, an exporter), "
    if case.conf.worker_send_task_events:
        yield Sign(setting, f"{setting}=True", f"{told}set {case.line('worker_send_task_events', 'False')}.")
        return
    for worker in case.hearers if not isinstance(case.answered, str) else ():
        if worker.sends_events:
            yield Sign(worker.name, "it sends events of its tasks", f"{told}start it without -E.")


@rule(
    "CP418",
    "error",
    "Dead letters that are thrown away",
    "What finally failed is gone before anybody has looked at it, or because somebody looked at it.",
    upstream="rabbitmq/rabbitmq-server#18",
)
def forgets_letters(case: Case) -> Iterator[Sign]:
    """The dead-letter queue, as the app declares it, drops messages for their age, their number, or for being looked at."""
    if case.transport != "amqp":
        return
    for name in dict.fromkeys(task.dead_queue for task in case.tasks):
        queue = case.queue_of(name)
        said = None if queue is None else _drops(queue)
        if queue is not None and said is not None:
            whose = next(task.name for task in case.tasks if task.dead_queue == name)
            yield Sign(
                f"queue {queue.name}",
                f"it holds the dead letters of {whose}, and has {said}",
                f"Take {queue.name} out of task_queues: the library makes it. One that is there already is emptied and "
                "deleted first.",
            )


@rule(
    "CP419",
    "error",
    "A setting of a wrong kind",
    "What uses it ends with an error, far from here: no worker gets ready, beat dies, or .delay() or the task fails.",
    upstream="sontek/pyramid_celery#103",
)
def wrong_kind(case: Case) -> Iterator[Sign]:
    """A text where a number or a list belongs, a schedule's entry that is none, a time zone that nobody knows."""
    for place, what, expected in case.malformed:
        name, bracket, rest = place.partition("[")
        where = f"{case.spelled(name)}{bracket}{rest}" if name in SETTING_KEYS else place
        yield Sign(where, what, f"Expected is {expected}.")


@rule(
    "CP420",
    "error",
    "Messages that are written and not read",
    "A worker throws away what it is not to read, or whoever reads a result gets ContentDisallowed.",
    upstream="LPgenerator/django-db-mailer#120",
)
def unread(case: Case) -> Iterator[Sign]:
    """A serializer that ``accept_content`` does not let in, or that is not installed."""
    if isinstance(case.conf.accept_content, str) or not isinstance(case.conf.accept_content, Collection):
        return  # which has a rule of its own
    accepted = _names(case.conf.accept_content)
    results = accepted if case.conf.result_accept_content is None else _names(case.conf.result_accept_content)
    told = [(case.spelled("task_serializer"), str(case.conf.task_serializer), accepted)]
    told += [(task.name, str(task.task.serializer), accepted) for task in case.tasks]
    stores = case.keeps_results and any(not task.task.ignore_result for task in case.tasks)
    told += [(case.spelled("result_serializer"), str(case.conf.result_serializer), results)] * stores
    seen: set[str] = set()
    for where, name, let_in in told:
        if name in seen:
            continue
        seen.add(name)
        if not _is_installed(name):
            cure = "Call app.setup_security()." if name == "auth" else "Install its package, or take json."
            yield Sign(where, f"the serializer {name} is not installed", cure)
        elif registry.name_to_type.get(name, name) not in let_in:
            yield Sign(
                where,
                f"it writes with {name}, and accept_content is {sorted(case.conf.accept_content)}",
                "Take json in both." if name == "pickle" else f"Add {name!r} to accept_content, everywhere.",
            )


def _is_installed(name: str) -> bool:
    try:
        dumps([], serializer=name)
    except SerializerNotInstalled:
        return False
    except Exception:  # noqa: BLE001 - one of the user's own may want something else
        return True
    return True


def _names(content: Any) -> set[str]:
    """The content types that are let in."""
    return {registry.name_to_type.get(str(name), str(name)) for name in content or ()}


@rule(
    "CP421",
    "error",
    "Patterns that this app cannot keep",
    "No worker starts with such a task, and what is sent waits.",
    upstream="maciej-gol/tenant-schemas-celery#76",
)
def absent(case: Case) -> Iterator[Sign]:
    """A task wears patterns, and its app was not equipped or has no store; or its class, or its request, is none of ours."""
    for name, why in case.refused.items():
        what, _, cure = why.partition("; ")
        yield Sign(name, f"it {what.removeprefix(f'{name} ')}", f"{cure[:1].upper()}{cure[1:]}.")


@rule(
    "CP423",
    "error",
    "A queue of tasks that dead letters go to",
    "Its workers refuse to start: they would run what has died, again and again.",
    upstream="reef-technologies/cookiecutter-rt-django#195",
)
def runs_letters(case: Case) -> Iterator[Sign]:
    """The dead-letter queue is one that the app's tasks go to."""
    for name, whose in case.mixed.items():
        what = f"the dead letters of {whose} go to {name}, and so does {case.queues[name][0]}"
        yield Sign(f"queue {name}", what, f"Name another one: dead_letter({dead_queue(name)!r}).")


def _drops(queue: Any) -> str | None:
    """What makes a queue throw messages away."""
    said = {**(queue.queue_arguments or {})}
    for name in ("message_ttl", "expires", "max_length", "max_length_bytes"):
        if getattr(queue, name, None) is not None:
            own = getattr(queue, name)  # times are seconds here, and milliseconds on the server
            said[f"x-{name.replace('_', '-')}"] = own if name.startswith("max") else int(own * 1000)
    if "x-dead-letter-exchange" in said:
        return None  # they go on to another queue
    refuses = str(said.get("x-overflow", "")).startswith("reject")
    for name in ("x-message-ttl", "x-expires", *(() if refuses else ("x-max-length", "x-max-length-bytes"))):
        if said.get(name) is not None:
            return f"{name}={said[name]}"
    limit = said.get("x-delivery-limit")
    if said.get("x-queue-type") == "quorum" and isinstance(limit, int) and limit >= 0:
        return f"x-delivery-limit={limit}, and each look at a letter is a delivery"
    return None


RULES: tuple[Rule, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
