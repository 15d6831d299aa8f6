"""Every way to end that Celery knows: what the tests send, and what the documentation tells, in one place."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery.app.task import Task

from .harness import Floor

CHILD, NEXT, MAIN, NOBODY = "the child", "the child of the next start", "the main process", "nobody"
EVERYWHERE = ("prefork", "threads", "solo")

ABSENT: Any = object()

#: Celery 5.7 and later: what older releases do otherwise stands beside it in the rows.
NEW = hasattr(Task, "retry_on_worker_lost")


@dataclass(frozen=True)
class Row:
    """One way to end.

    Attributes:
        name: The test's name.
        says: The line of the documentation's table; the same for rows that differ in no answer.
        send: Sends a message that ends so, and returns its task id.
        reason: The letter's reason; None where there is to be no letter.
        writer: Who writes the letter.
        state: The state that Celery gives to the task.
        runs: How often the body is started.
        errbacks: How often Celery calls an errback.
        chord: How often a chord hears of it that has this task among its members: 0 where it goes on, None where the end
            is none of a member's.
        pools: Where there is such an end.
        shown: What the page says of the state, where the task goes on.
        over: When it is over, where no letter tells.
    """

    name: str
    says: str
    send: Callable[[Floor], str]
    reason: str | None
    writer: str
    state: str = "FAILURE"
    runs: int = 1
    errbacks: int = 1
    chord: int | None = None
    pools: tuple[str, ...] = EVERYWHERE
    shown: str = ""
    over: Callable[[Floor, str], object] = lambda shop, task_id: shop.app.AsyncResult(task_id).ready()

    def signature(self, shop: Floor) -> Any:
        """The same as a member of something larger."""
        assert isinstance(self.send, call)
        return self.send.signature(shop)


class call:
    """A task whose body ends in some way."""

    def __init__(self, how: str, task: str = "ends", **options: Any) -> None:
        self.how, self.task, self.options = how, task, options

    def signature(self, shop: Floor) -> Any:
        return shop.task(self.task).s(self.how).set(**self.options)

    def __call__(self, shop: Floor) -> str:
        errback = shop.task("failed_errback").si(self.how)
        return str(shop.task(self.task).apply_async((self.how,), link_error=errback, **self.options).id)


def revoke(task: str = "ends", **options: Any) -> Callable[[Floor], str]:
    """Call off a task that waits for its time, or one that runs."""
    running = bool(options)

    def send(shop: Floor) -> str:
        how = "terminated" if running else "revoked"
        task_id = call(how, task, **({} if running else {"countdown": 4}))(shop)
        if running:
            shop.wait(lambda: shop.traces.count("ends") == 1, what="the task's start")
        shop.app.control.revoke(task_id, **options)
        return task_id

    return send


def raw(
    shop: Floor,
    *,
    body: Any = b'[["raw"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
    content_type: str | None = "application/json",
    encoding: str = "utf-8",
    properties: dict[str, Any] | None = None,
    **headers: Any,
) -> str:
    """Send a message as it is, with the headers of a good one of ``ends`` where nothing else is said."""
    task_id = str(uuid.uuid4())
    good = {
        "lang": "py",
        "task": "ends",
        "id": task_id,
        "root_id": task_id,
        "retries": 0,
        "argsrepr": "",
        "kwargsrepr": "",
    }
    kept = {name: value for name, value in {**good, **headers}.items() if value is not ABSENT}
    with shop.app.connection_for_write() as connection, connection.Producer() as producer:
        producer.publish(
            body,
            exchange="",
            routing_key=shop.queue,
            headers=kept,
            content_type=content_type,
            content_encoding=encoding,
            **(properties or {"correlation_id": task_id}),
        )
    return task_id


def damaged(**damage: Any) -> Callable[[Floor], str]:
    return lambda shop: raw(shop, **damage)


def ran(times: int) -> Callable[[Floor, str], object]:
    return lambda shop, _: shop.traces.count("ends") == times


def discarded(shop: Floor, task_id: str) -> object:
    """Celery's own line says so, and is all that is left."""
    return shop.app.AsyncResult(task_id).ready() and f"ends_quiet[{task_id}]" in shop.workers[0].text()


def _ended_with_a_letter() -> list[Row]:
    fails, hard, lost = (
        "the body raises for good",
        "the hard time limit",
        "a lost child that is not to be started again",
    )
    crashed = "too many starts that came to no end: SIGKILL, out of memory, `sys.exit()` in a prefork child"
    other = "`MemoryError`, or what is no `Exception`"
    forked, green = ("prefork",), ("gevent",)
    return [
        Row("exception", fails, call("exception"), "failed", CHILD, chord=1, pools=(*EVERYWHERE, "gevent")),
        Row("last attempt", fails, call("exception", "ends_retried"), "failed", CHILD, chord=1),
        Row("unacked failure", fails, call("exception", "ends_unacked"), "failed", CHILD),
        Row("early exception", fails, call("exception", "ends_early"), "failed", CHILD),
        Row(
            "soft limit", "the soft time limit", call("soft", soft_time_limit=1), "failed", CHILD, chord=1, pools=forked
        ),
        Row("memory", other, call("memory"), "failed", CHILD, chord=1, pools=(*EVERYWHERE, "gevent")),
        Row("aborted", other, call("aborted"), "failed", CHILD, chord=1),
        Row("exit outside of prefork", other, call("exit"), "failed", CHILD, pools=("threads", "solo", "gevent")),
        Row("killed", crashed, call("kill"), "crashed", NEXT, runs=2, chord=1, pools=forked),
        Row(
            "exit",
            crashed,
            call("exit"),
            "crashed" if NEW else "worker_lost",
            NEXT if NEW else MAIN,
            state="FAILURE" if NEW else "PENDING",
            runs=2 if NEW else 1,
            errbacks=1 if NEW else 0,
            chord=1 if NEW else None,
            pools=forked,
        ),
        Row(
            "hard limit, requeued",
            "the hard time limit, time and again, with `acks_on_failure_or_timeout=False`",
            call("hard", "ends_unacked", time_limit=1),
            "crashed",
            NEXT,
            runs=2,
            errbacks=3,
            pools=forked,
        ),
        Row(
            "not encodable",
            "a result that the backend cannot encode",
            call("unencodable"),
            "result_not_encodable",
            MAIN,
            chord=1,
            pools=(*EVERYWHERE, "gevent"),
        ),
        Row(
            "hooked",
            "a hook of the task's own raises before the body",
            call("hooked", "ends_hooked"),
            "failed",
            MAIN,
            runs=0,
            chord=1,
        ),
        Row(
            "hooked memory",
            "a hook of the task's own raises before the body",
            call("memory", "ends_hooked"),
            "failed",
            MAIN,
            runs=0,
            chord=1,
        ),
        Row(
            "rejected",
            "`Reject(requeue=False)`",
            call("reject"),
            "rejected",
            MAIN,
            state="FAILURE" if NEW else "PENDING",
            errbacks=1 if NEW else 0,
            chord=1 if NEW else None,
            pools=(*EVERYWHERE, "gevent"),
        ),
        Row(
            "rejected, badly",
            "`Reject(requeue=False)`",
            call("reject badly"),
            "rejected",
            MAIN,
            state="FAILURE" if NEW else "PENDING",
            errbacks=1 if NEW else 0,
            chord=1 if NEW else None,
        ),
        Row(
            "requeued, early",
            "`Reject(requeue=True)` of a task that is acknowledged before it runs, and cannot go back",
            call("requeue", "ends_early"),
            "rejected",
            MAIN,
            state="PENDING",
            errbacks=0,
        ),
        Row(
            "hard limit",
            hard,
            call("hard", time_limit=1),
            "time_limit",
            MAIN,
            errbacks=2,
            chord=1 if NEW else 2,
            pools=forked,
        ),
        Row(
            "hard limit, early",
            hard,
            call("hard", "ends_early", time_limit=1),
            "time_limit",
            MAIN,
            errbacks=2,
            pools=forked,
        ),
        Row("hard limit, green", hard, call("hard", time_limit=1), "time_limit", MAIN, pools=green),
        Row("killed, early", lost, call("kill", "ends_early"), "worker_lost", MAIN, chord=1, pools=forked),
        Row("killed, not waited for", lost, call("kill", "ends_lost"), "worker_lost", MAIN, chord=1, pools=forked),
        Row(
            "revoked",
            'revoked, with `also={"revoked"}`',
            revoke(),
            "revoked",
            MAIN,
            state="REVOKED",
            runs=0,
            errbacks=0,
        ),
        Row(
            "terminated",
            'revoked, with `also={"revoked"}`',
            revoke(terminate=True, signal="SIGKILL"),
            "revoked",
            MAIN,
            state="REVOKED",
            errbacks=0,
            pools=forked,
        ),
        Row(
            "terminated, early",
            'revoked, with `also={"revoked"}`',
            revoke("ends_early", terminate=True),
            "revoked",
            MAIN,
            state="REVOKED",
            errbacks=0,
            pools=forked,
        ),
        Row(
            "expired",
            'past its `expires`, with `also={"expired"}`',
            call("expired", expires=-1),
            "expired",
            MAIN,
            state="REVOKED",
            runs=0,
            errbacks=0,
        ),
    ]


def _damaged() -> list[Row]:
    refused = {"content_type": "application/x-python-serialize", "encoding": "binary"}
    return [
        Row(
            reason,
            says,
            damaged(**damage),
            reason,
            MAIN,
            state=state,
            runs=0,
            errbacks=0,
            pools=(*EVERYWHERE, "gevent"),
        )
        for says, damage, reason, state in [
            ("a task that this worker does not know", {"task": "nobody.knows"}, "unknown_task", "FAILURE"),
            ("a body that cannot be decoded", {"body": b'[["raw"], {}, {"call'}, "unreadable", "PENDING"),
            ("a content type that is not accepted", refused, "content_type_refused", "PENDING"),
            ("headers, or a body, of another shape than Celery's", {"body": b"5"}, "malformed", "PENDING"),
        ]
    ]


def _ended_without_a_letter() -> list[Row]:
    quiet = "revoked, or past its `expires`, where `also` does not say so: a line in the log"

    def none(name: str, says: str, send: Callable[[Floor], str], state: str, **more: Any) -> Row:
        return Row(name, says, send, None, NOBODY, state=state, errbacks=0, **more)

    again = "`Reject(requeue=True)`: it runs again"
    lost_retried = "a lost child, with Celery's own `retry_on_worker_lost`: it is one more attempt"
    rows = [
        none("success", "success", call("fine"), "SUCCESS", chord=0, pools=(*EVERYWHERE, "gevent")),
        none("retry", "a retry", call("retry", "ends_retried"), "SUCCESS", runs=2, chord=0, shown="RETRY"),
        none("ignored", "`Ignore`", call("ignore"), "PENDING", over=ran(1)),
        none("ignored, badly", "`Ignore`", call("ignore badly"), "PENDING", over=ran(1)),
        none("requeued", again, call("requeue"), "SUCCESS", runs=2, over=ran(2), shown="as before"),
        none("revoked, quiet", quiet, revoke("ends_quiet"), "REVOKED", runs=0, over=discarded),
        none("expired, quiet", quiet, call("expired", "ends_quiet", expires=-1), "REVOKED", runs=0, over=discarded),
        none(
            "terminated, quiet",
            quiet,
            revoke("ends_quiet", terminate=True, signal="SIGKILL"),
            "REVOKED",
            over=discarded,
            pools=("prefork",),
        ),
    ]
    if NEW:
        for name in ("ends_lost_retried", "ends_lost_retried_early"):
            row = none(
                name,
                lost_retried,
                call("kill once", name),
                "SUCCESS",
                runs=2,
                chord=0,
                pools=("prefork",),
                shown="RETRY",
            )
            rows.append(row)
    return rows


def _lost_for_good() -> list[Row]:
    """With the attempts of Celery 5.7's ``retry_on_worker_lost`` used up."""
    if not NEW:
        return []
    says = "a lost child that is not to be started again"
    return [
        Row("lost for good", says, call("kill", "ends_lost_retried"), "worker_lost", MAIN, runs=2, pools=("prefork",)),
    ]


ROWS = [*_ended_with_a_letter(), *_lost_for_good(), *_damaged(), *_ended_without_a_letter()]
