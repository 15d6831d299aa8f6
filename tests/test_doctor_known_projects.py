"""No false alarm: the Celery settings of projects that many run, typed anew, with tasks of their names and options.

An error is found where one is, and each that is found is one whose failure `test_doctor` has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab
from kombu import Exchange, Queue

from celery_patterns.doctor import examine

REDIS = "redis://127.0.0.1:6379/0"


def airflow() -> Celery:
    """Its executor: one task, acknowledged late, whose visibility timeout is six hours."""
    app = Celery("airflow.executors.celery_executor", set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        event_serializer="json",
        worker_prefetch_multiplier=1,
        task_acks_late=True,
        task_default_queue="default",
        task_default_exchange="default",
        broker_url=REDIS,
        broker_transport_options={"visibility_timeout": 21_600},
        result_backend="db+postgresql://airflow:airflow@127.0.0.1/airflow",
        worker_concurrency=16,
    )

    @app.task(shared=False, name="execute_command")
    def execute_command(command: list[str]) -> None: ...

    return app


def superset() -> Celery:
    """Its own default: one mail task has a hard limit of 120 s and a soft one of 150 s, which Celery 5.7 refuses to send."""
    app = Celery("superset", set_as_current=False)
    app.config_from_object(
        SimpleNamespace(
            broker_url=REDIS,
            imports=(),
            result_backend=REDIS,
            worker_prefetch_multiplier=10,
            task_acks_late=False,
            task_annotations={
                "sql_lab.get_sql_results": {"rate_limit": "100/s"},
                "email_reports.send": {
                    "rate_limit": "1/s",
                    "time_limit": 120,
                    "soft_time_limit": 150,
                    "ignore_result": True,
                },
            },
            beat_schedule={
                "reports.scheduler": {"task": "reports.scheduler", "schedule": crontab(minute="*", hour="*")},
                "reports.prune_log": {"task": "reports.prune_log", "schedule": crontab(minute=10, hour=0)},
            },
        )
    )
    for name in ("sql_lab.get_sql_results", "email_reports.send", "reports.scheduler", "reports.prune_log"):
        app.task(shared=False, name=name)(_empty())
    return app


def addons_server() -> Celery:
    """Many queues, a soft limit alone, results ignored; Django's names."""
    queues = ("addons", "amo", "cron", "default", "devhub", "images", "priority", "reviewers", "users")
    app = Celery("olympia", set_as_current=False)
    app.config_from_object(
        SimpleNamespace(
            DEBUG=False,
            SECRET_KEY="not a setting of Celery's",
            CELERY_BROKER_URL="amqp://olympia:olympia@localhost:5672/olympia",
            CELERY_BROKER_CONNECTION_TIMEOUT=0.1,
            CELERY_BROKER_HEARTBEAT=900,
            CELERY_TASK_DEFAULT_QUEUE="default",
            CELERY_RESULT_BACKEND="redis://localhost:6379/1",
            CELERY_TASK_IGNORE_RESULT=True,
            CELERY_SEND_TASK_ERROR_EMAILS=True,
            CELERY_WORKER_HIJACK_ROOT_LOGGER=False,
            CELERY_WORKER_DISABLE_RATE_LIMITS=True,
            CELERY_ACCEPT_CONTENT=["json"],
            CELERY_TASK_SERIALIZER="json",
            CELERY_RESULT_SERIALIZER="json",
            CELERY_TASK_EAGER_PROPAGATES=True,
            CELERY_TASK_SOFT_TIME_LIMIT=1800,
            CELERY_TASK_QUEUES=tuple(Queue(name, routing_key=name) for name in queues),
            CELERY_TASK_ROUTES={
                "olympia.addons.tasks.index_addons": {"queue": "priority"},
                "celery.chord_unlock": {"queue": "devhub"},
                "olympia.devhub.tasks.validate_file": {"queue": "devhub"},
            },
        ),
        namespace="CELERY",
    )
    app.task(shared=False, name="olympia.addons.tasks.index_addons")(_empty())
    app.task(shared=False, name="olympia.devhub.tasks.validate_file", time_limit=600, soft_time_limit=540)(_empty())
    app.task(shared=False, bind=True, name="olympia.amo.tasks.send_email", max_retries=5)(_empty())
    return app


def sentry() -> Celery:
    """Old names, many direct queues, no results, the old protocol; and pickle, which is a door for whoever reaches Redis."""
    default = Exchange("default", type="direct")
    app = Celery("sentry", set_as_current=False)
    app.config_from_object(
        SimpleNamespace(
            BROKER_URL="redis://127.0.0.1:6379",
            BROKER_TRANSPORT_OPTIONS={},
            CELERY_ALWAYS_EAGER=False,
            CELERY_COMPLAIN_ABOUT_BAD_USE_OF_PICKLE=False,
            CELERY_TASK_PROTOCOL=1,
            CELERY_EAGER_PROPAGATES_EXCEPTIONS=True,
            CELERY_IGNORE_RESULT=True,
            CELERY_SEND_EVENTS=False,
            CELERY_RESULT_BACKEND=None,
            CELERY_TASK_RESULT_EXPIRES=1,
            CELERY_DISABLE_RATE_LIMITS=True,
            CELERY_DEFAULT_QUEUE="default",
            CELERY_DEFAULT_EXCHANGE="default",
            CELERY_DEFAULT_EXCHANGE_TYPE="direct",
            CELERY_DEFAULT_ROUTING_KEY="default",
            CELERY_CREATE_MISSING_QUEUES=True,
            CELERY_REDIRECT_STDOUTS=False,
            CELERYD_HIJACK_ROOT_LOGGER=False,
            CELERY_TASK_SERIALIZER="pickle",
            CELERY_RESULT_SERIALIZER="pickle",
            CELERY_ACCEPT_CONTENT={"pickle"},
            CELERY_QUEUES=[Queue(name, routing_key=name, exchange=default) for name in ("default", "alerts", "email")],
        )
    )
    app.task(
        shared=False,
        name="sentry.tasks.email.send_email",
        queue="email",
        default_retry_delay=300,
        max_retries=5,
        acks_late=True,
    )(_empty())
    app.task(shared=False, name="sentry.tasks.store.save_event", queue="default", time_limit=65, soft_time_limit=60)(
        _empty()
    )
    return app


def read_the_docs() -> Celery:
    """Eager in development, a hard limit of an hour, scheduled tasks in a queue of their own."""
    app = Celery("readthedocs", set_as_current=False)
    every = {"options": {"queue": "web"}}
    app.config_from_object(
        SimpleNamespace(
            BROKER_URL=REDIS,
            CELERY_RESULT_BACKEND=REDIS,
            CELERY_APP_NAME="readthedocs",
            CELERY_ALWAYS_EAGER=True,
            CELERYD_TASK_TIME_LIMIT=3600,
            CELERY_SEND_TASK_ERROR_EMAILS=False,
            CELERYD_HIJACK_ROOT_LOGGER=False,
            CELERYD_PREFETCH_MULTIPLIER=1,
            CELERY_CREATE_MISSING_QUEUES=True,
            CELERY_DEFAULT_QUEUE="celery",
            CELERYBEAT_SCHEDULE={
                "symlinks": {"task": "readthedocs.projects.tasks.symlinks", "schedule": crontab(minute=30), **every},
                "builds": {"task": "readthedocs.projects.tasks.builds", "schedule": crontab(minute="*/15"), **every},
            },
        )
    )
    for name in ("symlinks", "builds"):
        app.task(shared=False, name=f"readthedocs.projects.tasks.{name}")(_empty())
    app.task(
        shared=False, bind=True, name="readthedocs.projects.tasks.update_docs", max_retries=5, default_retry_delay=420
    )(_empty())
    return app


def _empty() -> Any:
    def work(*args: Any, **kwargs: Any) -> None: ...

    return work


@pytest.fixture
def closing() -> Iterator[list[Celery]]:
    apps: list[Celery] = []
    yield apps
    for app in apps:
        app.close()


@pytest.mark.parametrize(
    ("project", "errors"),
    [
        (airflow, []),
        (superset, ["CP309"]),
        (addons_server, []),
        (sentry, ["CP113"]),
        (read_the_docs, []),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_known_project_gets_no_false_alarm(project: Any, errors: list[str], closing: list[Celery]) -> None:
    """The errors that are there, and no other; no rule stumbles over its settings."""
    app = project()
    closing.append(app)
    found = examine(app, offline=True)
    assert [one.id for one in found.errors] == errors
    assert not [what for what in found.unchecked if what.startswith("CP")]


def test_what_is_found_there_holds() -> None:
    """Superset's mail task cannot be sent; Sentry's worker takes what pickle brings."""
    mail = superset()
    mail.conf.broker_url = "memory://"
    with pytest.raises(ValueError, match="soft_time_limit must be less than or equal to time_limit"):
        mail.tasks["email_reports.send"].delay()
    assert sentry().conf.accept_content == {"pickle"}
