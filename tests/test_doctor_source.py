"""What the doctor makes of source: ways to write a mistake that it must know, and right code that looks like one."""

from __future__ import annotations

import importlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_patterns.doctor import examine

from .projects import Project

HEAD = """\
import contextlib
import functools
import sys

from celery import Celery, chain, group, shared_task
from celery.exceptions import SoftTimeLimitExceeded
from celery.exceptions import SoftTimeLimitExceeded as Limit

import celery_patterns as patterns
from celery_patterns import dead_letter

app = Celery("$name", broker="redis://127.0.0.1:6379/0", backend="redis://127.0.0.1:6379/0", set_as_current=False)


class transaction:
    atomic = staticmethod(lambda f=None: f)


def method_decorator(decorator):
    return decorator
"""

#: A task that is tried again, above its function.
TRIED = "patterns.use_patterns(app)\n\n\n@app.task(time_limit=9)\n@patterns.retry(on=OSError)\n"

#: A task with a key.
KEYED = "from datetime import timedelta\n\npatterns.use_patterns(app)\npatterns.use_store(app, patterns.stores.MemoryStore())\n\n\n@app.task(time_limit=9)\n@patterns.idempotent(key={}, ttl=timedelta(days=1))\ndef a(order): ..."

#: Each is found once, by this rule.
MISTAKES = {
    "a result in the same line": (
        "CP501",
        "@app.task\ndef a():\n    return b.delay().get()\n\n\n@app.task\ndef b(): ...",
    ),
    "a result in a variable": ("CP501", "@app.task\ndef a():\n    r = a.delay()\n    return r.get(timeout=1)"),
    "a result of a group": ("CP501", "@app.task\ndef a():\n    return group(a.s() for _ in range(2))().join()"),
    "a result of a canvas": ("CP501", "@app.task\ndef a():\n    return (a.s() | a.s())().get()"),
    "results in a loop": (
        "CP501",
        "@app.task\ndef a():\n    rs = [a.delay() for _ in range(2)]\n    for i, r in enumerate(rs):\n        r.get()",
    ),
    "results of two variables": ("CP501", "@app.task\ndef a():\n    x, y = a.delay(), a.delay()\n    y.get()"),
    "a result by its id": ("CP501", "@app.task\ndef a(i):\n    return app.AsyncResult(i).get()"),
    "a result that := names": ("CP501", "@app.task\ndef a():\n    if (q := a.delay()):\n        q.get()"),
    "a result in a class": (
        "CP501",
        "class A(app.Task):\n    name = 'a'\n\n    def run(self):\n        return b.delay().get()\n\n\n@app.task\ndef b(): ...",
    ),
    "sent in a decorated view": (
        "CP502",
        "@app.task\ndef a(): ...\n\n\n@transaction.atomic\ndef view():\n    a.delay()",
    ),
    "sent in a method": (
        "CP502",
        "@app.task\ndef a(): ...\n\n\n@method_decorator(transaction.atomic)\ndef view():\n    a.delay()",
    ),
    "a canvas in a transaction": (
        "CP502",
        "@app.task\ndef a(): ...\n\n\ndef view():\n    with transaction.atomic():\n        group(a.s())()",
    ),
    "sent in a session": (
        "CP502",
        "@app.task\ndef a(): ...\n\n\ndef view():\n    with Session.begin() as session:\n        a.apply_async()",
    ),
    "swallowed in a loop": (
        "CP505",
        "@app.task(soft_time_limit=1)\ndef a():\n    for _ in range(9):\n        try:\n            work()\n        except Exception:\n            continue",
    ),
    "swallowed by a with": (
        "CP505",
        "@app.task(soft_time_limit=1)\ndef a():\n    with contextlib.suppress(Exception):\n        work()\n    more()",
    ),
    "swallowed by all": (
        "CP505",
        "@app.task(soft_time_limit=1)\ndef a():\n    try:\n        work()\n    except:\n        pass\n    more()",
    ),
    "two attributes at once": ("CP506", "@app.task(bind=True)\ndef a(self):\n    self.x, y = 1, 2"),
    "an annotated attribute": ("CP506", "@app.task(bind=True)\ndef a(self):\n    self.x: int = 1"),
    "an attribute by setattr": ("CP506", "@app.task(bind=True)\ndef a(self):\n    setattr(self, 'x', 1)"),
    "an attribute in a class": (
        "CP506",
        "class A(app.Task):\n    name = 'a'\n\n    def run(self):\n        self.x = 1",
    ),
    "a row by keyword": (
        "CP507",
        "@app.task\ndef a(u): ...\n\n\ndef view():\n    user = User.objects.get(pk=1)\n    a.apply_async(kwargs={'u': user})",
    ),
    "rows in a loop": (
        "CP507",
        "@app.task\ndef a(u): ...\n\n\ndef view():\n    for u in User.objects.all():\n        a.delay(u)",
    ),
    "the request's user": ("CP507", "@app.task\ndef a(u): ...\n\n\ndef view(request):\n    a.delay(request.user)"),
    "a row of a session": (
        "CP507",
        "@app.task\ndef a(u): ...\n\n\ndef view():\n    a.delay(session.query(User).first())",
    ),
    "a set in a dict": ("CP509", "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.delay({'ids': {1, 2}})"),
    "a set in args": ("CP509", "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.apply_async(args=[{1, 2}])"),
    "a set in a variable": ("CP509", "@app.task\ndef a(x): ...\n\n\ndef view():\n    ids = {1, 2}\n    a.delay(ids)"),
    "a span of a module": ("CP509", "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.delay(datetime.timedelta(1))"),
    "a row of a local import": (
        "CP507",
        "@app.task\ndef a(u): ...\n\n\ndef view():\n    from $name import a as b\n    b.delay(request.user)",
    ),
    "a day's countdown": (
        "CP512",
        "@app.task\ndef a(): ...\n\n\ndef view():\n    a.apply_async(countdown=24 * 60 * 60)",
    ),
    "a retry in two hours": ("CP512", "@app.task(bind=True)\ndef a(self):\n    raise self.retry(countdown=7200)"),
    "a result in a helper": (
        "CP501",
        "def helper():\n    return b.delay().get()\n\n\n@app.task\ndef a():\n    return helper()\n\n\n@app.task\ndef b(): ...",
    ),
    "a result in a helper's helper": (
        "CP501",
        "@app.task\ndef a():\n    first()\n\n\ndef first():\n    return second()\n\n\ndef second():\n    r = a.delay()\n    return r.get() or first()",
    ),
    "a row of a signal": (
        "CP507",
        "@app.task\ndef a(u): ...\n\n\ndef saved(sender, instance, created, **more):\n    a.delay(instance)",
    ),
    "a row of a signal, later": (
        "CP507",
        "@app.task\ndef a(u): ...\n\n\ndef saved(sender, instance, **more):\n    transaction.on_commit(lambda: a.delay(instance))",
    ),
    "a row of a form": (
        "CP507",
        "@app.task\ndef a(u): ...\n\n\ndef view(form):\n    order = form.save()\n    a.delay(order)",
    ),
    "a row of a serializer": (
        "CP507",
        "@app.task\ndef a(u): ...\n\n\nclass View:\n    def perform_create(self, serializer):\n        a.delay(serializer.save(owner=1))",
    ),
    "sent before the commit": (
        "CP502",
        "@app.task\ndef a(i): ...\n\n\ndef view(session, o):\n    session.add(o)\n    session.flush()\n    a.delay(str(o.id))\n    session.add(1)\n    session.commit()",
    ),
    "sent before the commit, by a variable": (
        "CP502",
        "@app.task\ndef a(i): ...\n\n\ndef view(o):\n    db.session.add(o)\n    db.session.flush()\n    key = o.id\n    a.apply_async(args=[key])\n    db.session.commit()",
    ),
    "sent before the commit, in a condition": (
        "CP502",
        "@app.task\ndef a(i): ...\n\n\ndef view(o):\n    db.session.add(o)\n    if o.due:\n        a.delay(o.id)\n    db.session.commit()",
    ),
    "results that are gathered": (
        "CP501",
        "@app.task\ndef a():\n    rs = []\n    for _ in range(2):\n        rs.append(a.delay())\n    for r in rs:\n        r.get()",
    ),
    "results under keys": (
        "CP501",
        "@app.task\ndef a(ks):\n    rs = {k: a.delay() for k in ks}\n    for k, r in rs.items():\n        r.get()",
    ),
    "results that are put under keys": (
        "CP501",
        "@app.task\ndef a(ks):\n    rs = {}\n    for k in ks:\n        rs[k] = a.delay()\n    return [r.get() for r in rs.values()]",
    ),
    "one of several results": (
        "CP501",
        "@app.task\ndef a():\n    rs = [a.delay() for _ in range(2)]\n    return rs[0].get()",
    ),
    "an effect of a client that is closed": (
        "CP504",
        "@app.task(autoretry_for=(OSError,), max_retries=2)\ndef a():\n    with httpx.Client() as c:\n        c.post('https://pay')",
    ),
    "an effect of a session of one's own": (
        "CP504",
        "@app.task(autoretry_for=(OSError,), max_retries=2)\ndef a(url):\n    s = requests.Session()\n    s.post(url)",
    ),
    "an attribute that a loop sets": ("CP506", "@app.task(bind=True)\ndef a(self):\n    for self.x in range(2): ..."),
    "an attribute that a with sets": (
        "CP506",
        "@app.task(bind=True)\ndef a(self):\n    with open('f') as self.x: ...",
    ),
    "an object of one's own": (
        "CP509",
        "class Point:\n    x = 1\n\n\n@app.task\ndef a(p): ...\n\n\ndef view():\n    p = Point()\n    a.delay(p)",
    ),
    "an open file": (
        "CP509",
        "@app.task\ndef a(f): ...\n\n\ndef view():\n    with open('x') as f:\n        a.delay(f)",
    ),
    "a set under a key": (
        "CP509",
        "@app.task\ndef a(x): ...\n\n\ndef view():\n    d = {'n': 1, 'x': {2}}\n    a.delay(d['x'])",
    ),
    "called behind .delay()": ("CP503", "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.delay(1)\n    a(2)"),
    "a script that calls for .delay()": (
        "CP503",
        "@app.task\ndef charge(order, amount): ...\n\n\nif __name__ == '__main__':\n    charge('o-1', amount=9)",
    ),
    "a call that is waited for": (
        "CP503",
        "@app.task\ndef a(x): ...\n\n\ndef view():\n    result = a(1)\n    print(result.get(timeout=3))",
    ),
    "a helper that wears patterns": (
        "CP515",
        "@patterns.retry(on=OSError)\ndef b(x): ...\n\n\n@app.task\ndef a(x):\n    return b(x)",
    ),
    "three in a row that are dropped": (
        "CP518",
        "@app.task\ndef a(): ...\n\n\ndef view():\n    a.s() | a.s() | a.s()",
    ),
    "a chord without its end": (
        "CP518",
        "from celery import chord\n\n\n@app.task\ndef a(): ...\n\n\ndef view():\n    chord([a.s(), a.s()])",
    ),
    "a call that is waited for at once": (
        "CP503",
        "@app.task\ndef a(): ...\n\n\nif __name__ == '__main__':\n    print(a().get())",
    ),
    "a signature that is dropped": ("CP518", "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.s(1)"),
    "a delay that is not called": ("CP518", "@app.task\ndef a(): ...\n\n\ndef view():\n    a.delay"),
    "a canvas that is dropped": ("CP518", "@app.task\ndef a(): ...\n\n\ndef view():\n    chain(a.s(), a.s())"),
    "a pipe that is dropped": ("CP518", "@app.task\ndef a(): ...\n\n\ndef view():\n    a.s() | a.s()"),
    "two functions of one name": ("CP517", "@app.task\ndef a(): ...\n\n\n@app.task\ndef a(): ..."),
    "two tasks that are given one name": (
        "CP517",
        "@app.task(name='x')\ndef a(): ...\n\n\n@shared_task(name='x')\ndef b(): ...",
    ),
    "patterns on what is no task": (
        "CP515",
        "@app.task\ndef a(): ...\n\n\n@patterns.retry(on=OSError)\n@patterns.logged()\ndef b(): ...",
    ),
    "patterns by their own names": ("CP515", "@app.task\ndef a(): ...\n\n\n@dead_letter('x.dead')\ndef b(): ..."),
    "a base that no task has": (
        "CP516",
        "class Base(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n\n@app.task\ndef a(): ...",
    ),
    "a base of bases that no task has": (
        "CP516",
        "class Base(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n\nclass Other(Base): ...\n\n\n@app.task(base=Base)\ndef a(): ...",
    ),
    "a whole task that is not registered": (
        "CP516",
        "class A(patterns.PatternTask):\n    name = 'x'\n    patterns = (patterns.logged(),)\n\n    def run(self): ...\n\n\n@app.task\ndef a(): ...",
    ),
    "a whole task that is sent as it is made": (
        "CP516",
        "class A(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n    def run(self): ...\n\n\n@app.task\ndef a(): ...\n\n\ndef view():\n    A().delay()",
    ),
    "a whole task that is sent by a variable": (
        "CP516",
        "class A(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n    def run(self): ...\n\n\nx = A()\n\n\n@app.task\ndef a(): ...\n\n\ndef view():\n    x.apply_async()",
    ),
    "a task that is a method": (
        "CP519",
        "class Shop:\n    @app.task\n    def a(self, order): ...",
    ),
    "one attempt": (
        "CP526",
        "patterns.use_patterns(app)\n\n\n@app.task(time_limit=9)\n@patterns.retry(on=OSError, attempts=1)\ndef a(): ...",
    ),
    "an error of results": (
        "CP526",
        "from celery.exceptions import TimeoutError\n\npatterns.use_patterns(app)\n\n\n@app.task(time_limit=9)\n@patterns.retry(on=(ConnectionError, TimeoutError))\ndef a(): ...",
    ),
    "errors with an or": (
        "CP526",
        "patterns.use_patterns(app)\n\n\n@app.task(time_limit=9)\n@patterns.retry(on=(ConnectionError or TimeoutError))\ndef a(): ...",
    ),
    "a key by chance": ("CP527", f"import uuid\n\n{KEYED.format('lambda order: str(uuid.uuid4())')}"),
    "a key of the time": (
        "CP527",
        f"import time\n\n\ndef of(order):\n    return f'{{order}} {{time.time()}}'\n\n\n{KEYED.format('of')}",
    ),
    "a key of today": (
        "CP527",
        f"from datetime import datetime\n\n{KEYED.format('lambda order: (order, datetime.now())')}",
    ),
    "a name that is misspelt": ("CP528", "@app.task\ndef a(amount):\n    return f'charged {ammount}'"),
    "a name in a function within": ("CP528", "@app.task\ndef a(amount):\n    return [twice(one) for one in amount]"),
    "a float for a Decimal": (
        "CP529",
        "from decimal import Decimal\n\n\n@app.task\ndef a(order: str, amount: Decimal): ...\n\n\ndef view():\n    a.delay('o-1', 9.90)",
    ),
    "a text for a number": (
        "CP529",
        "@app.task(bind=True)\ndef a(self, order: str, amount: int): ...\n\n\ndef view():\n    a.delay('o-1', amount='9')",
    ),
    "an exception that is returned": ("CP524", "@app.task\ndef a():\n    return ConnectionError('it is down')"),
    "a body that swallows all": (
        "CP525",
        f"{TRIED}def a(x):\n    'It works.'\n    try:\n        return print(x)\n    except Exception:\n        pass",
    ),
    "a bare except that logs": (
        "CP525",
        f"{TRIED}def a(x):\n    import logging\n    logging.info('begins')\n    try:\n        work(x)\n    except:\n        logging.exception('no')\n        return None",
    ),
    "a body that lets its limit through": (
        "CP525",
        f"{TRIED}def a(x):\n    try:\n        work(x)\n    except SoftTimeLimitExceeded:\n        raise\n    except Exception:\n        print('no')",
    ),
    "an except of more than is tried again": (
        "CP525",
        f"{TRIED.replace('OSError', 'ConnectionError')}def a(x):\n    try:\n        work(x)\n    except OSError:\n        pass",
    ),
    "a handler that logs as it is often written": (
        "CP525",
        f"{TRIED}def a(x):\n    import logging\n    try:\n        work(x)\n    except Exception as e:\n        logging.getLogger(__name__).error('no %s', type(e).__name__)",
    ),
    "an except of what is tried again": (
        "CP525",
        f"{TRIED.replace('OSError', '(OSError, KeyError)')}def a(x):\n    try:\n        work(x)\n    except (KeyError, OSError):\n        return 'no'",
    ),
    "bound, and takes nothing": ("CP519", "@app.task(bind=True)\ndef a(): ..."),
    "not bound, under patterns": (
        "CP519",
        "patterns.use_patterns(app)\n\n\n@app.task\n@patterns.logged()\ndef a(self, x): ...",
    ),
    "a misspelt name that is sent": (
        "CP520",
        "@app.task(name='shop.charge')\ndef a(): ...\n\n\ndef view():\n    app.send_task('shop.chage')",
    ),
    "a state that is read at once": (
        "CP523",
        "@app.task\ndef a(): ...\n\n\ndef view():\n    return a.apply_async().state",
    ),
    "an object of one's own that is returned": (
        "CP524",
        "class Row: ...\n\n\n@app.task\ndef a():\n    row = Row()\n    return row",
    ),
    "a job that is called": ("CP501", "@app.task\ndef a():\n    job = group(a.s())\n    res = job()\n    res.get()"),
    "results of a set": (
        "CP501",
        "from celery.result import ResultSet\n\n\n@app.task\ndef a():\n    return ResultSet([a.delay()]).join()",
    ),
    "an attribute of many": ("CP506", "@app.task(bind=True)\ndef a(self):\n    x, *self.rest = [1, 2]"),
    "rows that are not read yet": (
        "CP507",
        "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.delay(User.objects.filter(active=True))",
    ),
    "a row that was made or not": (
        "CP507",
        "@app.task\ndef a(x): ...\n\n\ndef view():\n    user, made = User.objects.get_or_create(email='x')\n    a.delay(user)",
    ),
    "a row that was awaited": (
        "CP507",
        "@app.task\ndef a(x): ...\n\n\nasync def view():\n    user = await User.objects.aget(pk=1)\n    a.delay(user)",
    ),
    "a row by a session's key": (
        "CP507",
        "@app.task\ndef a(x): ...\n\n\ndef view():\n    user = session.get(User, 1)\n    a.delay(user)",
    ),
    "a function": (
        "CP509",
        "@app.task\ndef a(x): ...\n\n\ndef callback(): ...\n\n\ndef view():\n    a.delay(callback)",
    ),
    "an exception": (
        "CP509",
        "@app.task\ndef a(x): ...\n\n\ndef view():\n    try:\n        work()\n    except ValueError as error:\n        a.delay(error)",
    ),
    "a range": ("CP509", "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.delay(range(3))"),
    "a key of several parts": ("CP509", "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.delay({(1, 2): 3})"),
    "a day's wait by a name": (
        "CP512",
        "DAY = 24 * 3600\n\n\n@app.task\ndef a(): ...\n\n\ndef view():\n    a.apply_async(countdown=DAY + 60)",
    ),
    "a moment tomorrow": (
        "CP512",
        "@app.task\ndef a(): ...\n\n\ndef view():\n    a.apply_async(eta=datetime.now() + timedelta(days=1))",
    ),
    "a charge": (
        "CP504",
        "@app.task(autoretry_for=(OSError,), max_retries=2)\ndef a():\n    stripe.Charge.create(amount=1)",
    ),
    "a set by pickle, which nobody reads": (
        "CP420",
        "@app.task(serializer='pickle')\ndef a(x): ...\n\n\ndef view():\n    a.delay({1, 2})",
    ),
    "tomorrow in a variable": (
        "CP512",
        "@app.task\ndef a(x): ...\n\n\ndef view():\n    tomorrow = datetime.now() + timedelta(days=1)\n    a.apply_async((1,), eta=tomorrow)",
    ),
    "a user that was made": (
        "CP507",
        "@app.task\ndef a(x): ...\n\n\ndef view():\n    user = User.objects.create_user(username='x')\n    a.delay(user)",
    ),
    "a view's user": (
        "CP507",
        "@app.task\ndef a(x): ...\n\n\nclass View:\n    def post(self):\n        a.delay(self.request.user)",
    ),
    "a row in a dict": (
        "CP507",
        "@app.task\ndef a(x): ...\n\n\ndef view():\n    user = User.objects.get(pk=1)\n    a.delay({'user': user})",
    ),
    "a set in dict()": ("CP509", "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.apply_async(kwargs=dict(x={1}))"),
    "a result of this app": ("CP501", "@app.task\ndef a(i):\n    return app.AsyncResult(i, app=app).get()"),
}
#: In none of them anything is found.
RIGHT = {
    "sent behind the commit": "@app.task\ndef a(i): ...\n\n\ndef view(session, o):\n    session.add(o)\n    session.commit()\n    a.delay(o.id)",
    "sent between two commits": (
        "@app.task\ndef a(i): ...\n\n\ndef view(session, o):\n    session.add(o)\n    session.commit()\n    a.delay(o.id)\n    o.sent = True\n    session.commit()"
    ),
    "a commit of another way": (
        "@app.task\ndef a(i): ...\n\n\ndef view(session, o):\n    if o.new:\n        session.add(o)\n        session.commit()\n    else:\n        a.delay(o.id)"
    ),
    "a commit in a try": (
        "@app.task\ndef a(i): ...\n\n\ndef view(session, o):\n    session.add(o)\n    try:\n        session.commit()\n    except OSError:\n        return\n    a.delay(o.id)\n    session.commit()"
    ),
    "rolled back, and sent": (
        "@app.task\ndef a(i): ...\n\n\ndef view(session, o):\n    session.add(o)\n    session.rollback()\n    a.delay(o.id)\n    session.commit()"
    ),
    "sent on a way out": (
        "@app.task\ndef a(i): ...\n\n\ndef view(session, o):\n    session.add(o)\n    if o.bad:\n        a.delay(o.id)\n        return\n    session.commit()"
    ),
    "a commit by another name": (
        "@app.task\ndef a(i): ...\n\n\ndef view(o):\n    s = db.session\n    db.session.add(o)\n    s.commit()\n    a.delay(o.id)\n    db.session.commit()"
    ),
    "on one line": "@app.task\ndef a(i): ...\n\n\ndef view(session, o):\n    session.add(\n        o); session.commit(); a.delay(o.id); session.commit()",
    "about another row": (
        "@app.task\ndef a(i): ...\n\n\ndef view(session, log, i):\n    session.add(log)\n    a.delay(i)\n    session.commit()"
    ),
    "a dict of a call": "@app.task\ndef a(x): ...\n\n\ndef view():\n    found = a(1)\n    return found.get('n')",
    "a call in a test's way": "@app.task\ndef a(x): ...\n\n\ndef view():\n    found = a(1)\n    assert found",
    "somebody's signature": "import inspect\n\n\n@app.task\ndef a(): ...\n\n\ndef view(x):\n    inspect.signature(view)\n    x.s()",
    "a canvas that is called": (
        "from celery import chord\n\n\n@app.task\ndef a(*x): ...\n\n\ndef view():\n    chord([a.s()])(a.s())\n    chain(a.s(), a.s())()\n    (a.s() | a.s())()"
    ),
    "one of two ways to make a task": (
        "if sys.platform == 'x':\n\n    @app.task\n    def a(): ...\n\nelse:\n\n    @app.task\n    def a(): ..."
    ),
    "two names of one function's name": "@app.task(name='x')\ndef a(): ...\n\n\nfirst = a\n\n\n@app.task(name='y')\ndef a(): ...",
    "a function that is made a task": "patterns.use_patterns(app)\n\n\n@patterns.logged()\ndef b(): ...\n\n\na = app.task(b)",
    "a function that is made one later": (
        "@patterns.logged()\ndef b(): ...\n\n\n@app.task\ndef a(): ...\n\n\ndef plug(other):\n    other.task(b, name='b')"
    ),
    "a function that is made one by others": (
        "def job(f):\n    return f\n\n\n@job\n@patterns.logged()\ndef b(): ...\n\n\n@app.task\ndef a(): ..."
    ),
    "a task under its patterns": "patterns.use_patterns(app)\n\n\n@patterns.logged()\n@app.task\ndef a(): ...",
    "a base that a task has": (
        "class Base(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n\n@app.task(base=Base)\ndef a(): ..."
    ),
    "a base of a base": (
        "class Base(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n\nclass Other(Base): ...\n\n\n@app.task(base=Other)\ndef a(): ..."
    ),
    "a base for another app": (
        "class Base(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n\n@app.task\ndef a(): ...\n\n\ndef other(app):\n    return app.task(a.run, base=Base)"
    ),
    "a base that a text names": (
        "class Base(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n\nOTHERS = Celery(task_cls='proj:Base', set_as_current=False)\n\n\n@app.task\ndef a(): ..."
    ),
    "a base without patterns": "class Base(patterns.PatternTask): ...\n\n\n@app.task\ndef a(): ...",
    "a whole task that is registered": (
        "class A(patterns.PatternTask):\n    name = 'x'\n    patterns = (patterns.logged(),)\n\n    def run(self): ...\n\n\na = app.register_task(A())"
    ),
    "bound by options": "HOW = {'bind': True}\n\n\n@app.task(**HOW)\ndef a(self): ...",
    "bound, and takes whatever": "@app.task(bind=True)\ndef a(*args): ...",
    "a decorator that hands itself on": (
        "def given(f):\n    def run(x):\n        return f(1, x)\n\n    return run\n\n\n@app.task(name='a')\n@given\ndef a(self, x): ..."
    ),
    "bound by a decorator of one's own": "task = functools.partial(app.task, bind=True)\n\n\n@task\ndef a(self, x): ...",
    "one that takes itself or nothing": "@app.task\ndef a(self=None): ...",
    "a task that two decorators make": ("def task(f):\n    return f\n\n\n@task\n@app.task\ndef a(): ..."),
    "names that a decorator makes": (
        "def task(name):\n    return app.task(name=f'{name}.{len(app._pending)}')\n\n\n@task('x')\ndef a(): ...\n\n\n@task('x')\ndef b(): ..."
    ),
    "names that nobody can read": (
        "X = 'x'\n\n\n@app.task(name=X + '1')\ndef _(): ...\n\n\n@app.task(name=X + '2')\ndef _(): ..."
    ),
    "a second one by another name": "@app.task\ndef a(): ...\n\n\n@app.task(name='other')\ndef a(): ...",
    "a group of one's own name": (
        "@app.task\ndef a(x): ...\n\n\ndef view(ids, group):\n    group()\n\n\ndef other(ids):\n    group = chain(a.s(1), a.s(2))\n    group()"
    ),
    "somebody's pipes": "@app.task\ndef a(x): ...\n\n\ndef view(x, y):\n    x.s('daily') >> y\n    x.signature() | y",
    "one that asks whether it can be sent": (
        "@app.task\ndef a(): ...\n\n\ndef view():\n    try:\n        a.delay\n    except AttributeError:\n        pass"
    ),
    "a call that gives a result": (
        "@app.task\ndef a(ids):\n    return group(b.s(i) for i in ids).apply_async()\n\n\n@app.task\ndef b(i): ...\n\n\ndef view(ids):\n    return a(ids).get(timeout=3)"
    ),
    "a call that gives rows": "@app.task\ndef a(x):\n    return 'x'\n\n\ndef view(x):\n    rows = a(x)\n    return rows.get(pk=1)",
    "one of two ways to wait": (
        "@app.task\ndef a(x):\n    return 'x'\n\n\ndef view(x, eager):\n    if eager:\n        return a(x).get()\n    return a.delay(x)"
    ),
    "functions in a list": (
        "@patterns.logged()\ndef b(): ...\n\n\nJOBS = [b]\n\n\n@app.task\ndef a(): ...\n\n\ndef plug(other):\n    for one in JOBS:\n        other.task(one)"
    ),
    "a base that is for others": (
        "class Base(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n\n__all__ = ['Base']\n\n\n@app.task\ndef a(): ..."
    ),
    "somebody else's task that is sent": "@app.task\ndef a(): ...\n\n\ndef view():\n    app.send_task('billing.charge')",
    "sent where the import asks": (
        "import os\n\n\n@app.task\ndef a(): ...\n\n\nif os.environ.get('SEND'):\n    a.delay()"
    ),
    "an id that is read at once": "@app.task\ndef a(): ...\n\n\ndef view():\n    return a.delay().id",
    "a set that nobody keeps": "@app.task(ignore_result=True)\ndef a():\n    return {1, 2}",
    "another guard": "@app.task\ndef a(): ...\n\n\nif __name__ == 'shop.setup':\n    a.delay()",
    "what is no form": "@app.task\ndef a(u): ...\n\n\ndef view(transform):\n    a.delay(transform.save())",
    "a form of one's own": (
        "@app.task\ndef a(u): ...\n\n\nclass UploadForm:\n    def save(self):\n        return 'x'\n\n\ndef view(form):\n    a.delay(form.save())"
    ),
    "a path that a form gives": "@app.task\ndef a(u): ...\n\n\ndef view(form):\n    path = form.save()\n    a.delay(path)",
    "an instance that a comprehension names": (
        "@app.task\ndef a(u): ...\n\n\ndef saved(sender, instance, ids, **more):\n    [a.delay(instance) for instance in ids]"
    ),
    "an instance that is a text": "@app.task\ndef a(u): ...\n\n\ndef told(sender: str, instance: str):\n    a.delay(instance)",
    "an instance of a signal of Celery's": (
        "@app.task\ndef a(u): ...\n\n\ndef setup(sender=None, instance=None, **more):\n    a.delay(instance)"
    ),
    "a helper that waits if asked": (
        "@app.task\ndef a():\n    helper()\n\n\ndef helper(wait=False):\n    r = a.delay(1)\n    if wait:\n        return r.get()\n    return r.id"
    ),
    "a helper that is called later": (
        "@app.task\ndef a():\n    register(lambda: helper())\n\n\ndef helper():\n    return a.delay(1).get()"
    ),
    "a helper that gives one that waits": (
        "@app.task\ndef a():\n    return helper()\n\n\ndef helper():\n    def inner():\n        return a.delay(1).get()\n\n    return inner"
    ),
    "a set of one's own": "@app.task\ndef a(i): ...\n\n\ndef view(seen, session, o):\n    seen.add(o)\n    a.delay(1)\n    session.commit()",
    "sent before anything is written": (
        "@app.task\ndef a(i): ...\n\n\ndef view(session, o):\n    a.delay(1)\n    session.add(o)\n    session.commit()"
    ),
    "a helper that no task calls": "@app.task\ndef a(): ...\n\n\ndef helper():\n    return a.delay().get()\n\n\ndef view():\n    return helper()",
    "another function of a helper's name": (
        "@app.task\ndef a(helper):\n    helper()\n\n\ndef helper():\n    return a.delay(1).get()"
    ),
    "a method of a helper's name": (
        "class A:\n    def helper(self):\n        return a.delay().get()\n\n\ndef helper(): ...\n\n\n@app.task\ndef a():\n    helper()"
    ),
    "a key of a signal's row": (
        "@app.task\ndef a(u): ...\n\n\ndef saved(sender, instance, **more):\n    a.delay(instance.pk)"
    ),
    "an instance of one's own": "@app.task\ndef a(u): ...\n\n\ndef restart(instance):\n    a.delay(instance)",
    "an instance that is made anew": (
        "@app.task\ndef a(u): ...\n\n\ndef saved(sender, instance, **more):\n    instance = str(instance)\n    a.delay(instance)"
    ),
    "what a form's save gives": (
        "@app.task\ndef a(u): ...\n\n\ndef view(form):\n    order_id = form.save()\n    a.delay(order_id)"
    ),
    "what another save gives": "@app.task\ndef a(u): ...\n\n\ndef view(store):\n    a.delay(store.save('x'))",
    "another value of the same name": (
        "@app.task\ndef a(flag):\n    if flag:\n        r = a.delay(1)\n        return r.id\n    r = {'k': 1}\n    return r.get('k')"
    ),
    "an argument of the same name": "result = None\n\n\n@app.task\ndef a(result):\n    return result.get('k')",
    "a pattern of the same name": (
        "@app.task\ndef a(d):\n    r = a.delay(1)\n    match d:\n        case {'x': r}:\n            r.get('y')\n    return r"
    ),
    "an import of the same name": (
        "@app.task\ndef a(d):\n    r = a.delay(1)\n    from cache import r\n    return r.get('y')"
    ),
    "a lambda's argument": "@app.task\ndef a(d):\n    r = a.delay(1)\n    return sorted(d, key=lambda r: r.get('k'))",
    "a comprehension's variable": (
        "@app.task\ndef a(d):\n    r = a.delay(1)\n    return {k: r.get('k') for k, r in d.items()}"
    ),
    "an error of the same name": (
        "@app.task\ndef a(d):\n    r = a.delay(1)\n    try:\n        work()\n    except OSError as r:\n        r.get('k')"
    ),
    "an argument that is called like a task": "@app.task\ndef a(d): ...\n\n\ndef view(a):\n    a(1)",
    "a function that is called like a task": (
        "@app.task\ndef a(d): ...\n\n\ndef view():\n    from operator import neg as a\n    a(1)"
    ),
    "made where it is not": (
        "@app.task(bind=True)\ndef a(self):\n    if not hasattr(self, 'x'):\n        self.x = 1\n    try:\n        self.y\n    except AttributeError:\n        self.y = 2"
    ),
    "a break at the end": (
        "@app.task(soft_time_limit=1)\ndef a():\n    while True:\n        try:\n            work()\n        except Exception:\n            break"
    ),
    "a dict": "@app.task\ndef a():\n    d = dict()\n    return d.get('k')",
    "sent behind the transaction": (
        "@app.task\ndef a(): ...\n\n\ndef view():\n    with transaction.atomic():\n        save()\n    a.delay()"
    ),
    "sent on commit": (
        "@app.task\ndef a(): ...\n\n\ndef view():\n    with transaction.atomic():\n        transaction.on_commit(lambda: a.delay())"
    ),
    "a span": "@app.task\ndef a(): ...\n\n\ndef view():\n    with tracer.begin('span'):\n        a.delay()",
    "an end in the handler": (
        "@app.task(soft_time_limit=1)\ndef a():\n    try:\n        work()\n    except Exception:\n        return None\n    more()"
    ),
    "a handler at the end": (
        "@app.task(soft_time_limit=1)\ndef a():\n    try:\n        work()\n    except Exception:\n        log()"
    ),
    "a retry in the handler": (
        "@app.task(bind=True, soft_time_limit=1)\ndef a(self):\n    try:\n        work()\n    except Exception as error:\n        self.retry(exc=error)\n    more()"
    ),
    "the limit by another name": (
        "@app.task(soft_time_limit=1)\ndef a():\n    try:\n        work()\n    except Limit:\n        stop()\n    except Exception:\n        log()\n    more()"
    ),
    "an import that may fail": (
        "@app.task(soft_time_limit=1)\ndef a():\n    try:\n        import orjson\n    except Exception:\n        orjson = None\n    more()"
    ),
    "a class in the body": (
        "@app.task(bind=True)\ndef a(self):\n    class H:\n        def __init__(self):\n            self.x = 1\n    return H().x"
    ),
    "made once": "@app.task(bind=True)\ndef a(self):\n    if self.model is None:\n        self.model = load()\n    return 1",
    "a value of a row": (
        "@app.task\ndef a(u): ...\n\n\ndef view():\n    a.delay(User.objects.values_list('id', flat=True).first())"
    ),
    "the request's query": "@app.task\ndef a(p): ...\n\n\ndef view(request):\n    a.delay(request.query.get('page'))",
    "a row's key": (
        "@app.task\ndef a(u): ...\n\n\ndef view():\n    user = User.objects.get(pk=1)\n    user = str(user.pk)\n    a.delay(user)"
    ),
    "another delay": "@app.task\ndef a(): ...\n\n\ndef view():\n    scheduler.delay(lambda: 1)",
    "stored for this call": (
        "@app.task(ignore_result=True)\ndef a(): ...\n\n\ndef view():\n    return a.apply_async(ignore_result=False).get()"
    ),
    "a number beside a set": "@app.task\ndef a(x): ...\n\n\ndef view():\n    d = {'n': 1, 'x': {2}}\n    a.delay(d['n'])",
    "texts that are gathered": (
        "@app.task\ndef a():\n    rs = []\n    rs.append({'k': 1})\n    for r in rs:\n        r.get('k')"
    ),
    "a list that holds itself": "@app.task\ndef a(x): ...\n\n\ndef view():\n    xs = []\n    xs.append(xs[0])\n    a.delay(xs[0])",
    "an object that says what it is in JSON": (
        "class Point:\n    def __json__(self):\n        return 1\n\n\n@app.task\ndef a(p): ...\n\n\ndef view():\n    a.delay(Point())"
    ),
    "an object that kombu was taught": (
        "class Point: ...\n\n\nregister = register_type if 0 else None\n\n\ndef teach():\n    register_type(Point, 'p', str, str)\n\n\n"
        "@app.task\ndef a(p): ...\n\n\ndef view():\n    a.delay(Point())"
    ),
    "a text of a kind of one's own": (
        "class Name(str): ...\n\n\n@app.task\ndef a(p): ...\n\n\ndef view():\n    a.delay(Name('x'))"
    ),
    "a state of something else": "@app.task(ignore_result=True)\ndef a(order):\n    return order.state",
    "a post of something else": (
        "@app.task(autoretry_for=(OSError,), max_retries=2)\ndef a(url):\n    with lock() as s:\n        s.post(url)"
    ),
    "a step to the next": "@app.task\ndef a(node):\n    while (node := node['next']):\n        print(node.get('x'))",
    "a page of itself": "@app.task\ndef a(page):\n    if (page := page['next']) is not None:\n        return page['x'].get('y')",
    "a table of itself": "@app.task\ndef a(n):\n    dp = []\n    for i in range(n):\n        dp.append(dp[-1][0])\n    return dp[0].get('x')",
    "a deep one": "@app.task\ndef a(x):\n    d = x\n    return d['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a']['a'].get('x')",
    "a pool's result": "@app.task\ndef a(urls):\n    with ThreadPool(4) as pool:\n        results = [pool.apply_async(fetch, (u,)) for u in urls]\n        return [r.get() for r in results]",
    "a result of somebody else's": "def view(scheduler):\n    r = scheduler.delay(1)\n    return r.status",
    "a new value in several lines": "@app.task\ndef a(result):\n    result = b.apply_async(\n        args=[result.get('x')],\n        queue='q',\n    )\n    return result.id\n\n\n@app.task\ndef b(x): ...",
    "a value that is replaced under its key": "@app.task\ndef a(x): ...\n\n\ndef view(raw):\n    payload = {'ids': set(raw), 'n': 1}\n    payload['ids'] = sorted(payload['ids'])\n    a.delay(payload)\n    a.delay(payload['ids'])",
    "a value that is updated": "@app.task\ndef a(x): ...\n\n\ndef view(raw):\n    data = {'ids': set(raw)}\n    data.update(ids=list(data['ids']))\n    a.delay(data)",
    "the last of two kinds": "@app.task\ndef a(x):\n    both = [a.delay(1), {'k': 1}]\n    return both[-1].get('k')",
    "a share of kinds": "@app.task\ndef a(x): ...\n\n\ndef view():\n    rows = [{1}, [2], [3]]\n    a.delay(rows[1:])",
    "what is stored under two keys": "@app.task\ndef a(x):\n    d = {}\n    d['conf'] = {'k': 1}\n    d['task'] = a.delay(1)\n    for k, v in d.items():\n        v.get('k')",
    "the rest of a list": "@app.task\ndef a(x):\n    *h, last = a.delay(1), a.delay(1), {'k': 1}\n    return last.get('k')",
    "what a context gives": "class Job:\n    def __enter__(self):\n        return 'id'\n\n\n@app.task\ndef a(x): ...\n\n\ndef view():\n    with Job() as job:\n        a.delay(job)",
    "pickle for this call": "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.apply_async(args=[{1, 2}], serializer='pickle')",
    "a task of somebody else's": "class BaseTask: ...\n\n\nclass ImportTask(BaseTask):\n    def run(self, path):\n        self.rows = load(path)",
    "made once by or": "@app.task(bind=True)\ndef a(self):\n    self.db = self.db or connect()\n    self.c = getattr(self, 'c', None) or connect()",
    "made once by setattr": "@app.task(bind=True)\ndef a(self):\n    if not hasattr(self, 'db'):\n        setattr(self, 'db', connect())",
    "made once by another name": "@app.task(bind=True)\ndef a(self):\n    client = getattr(self, '_client', None)\n    if client is None:\n        client = self._client = connect()",
    "a client of something else": "@app.task(autoretry_for=(OSError,), max_retries=3)\ndef a(pk):\n    client = redis.Redis()\n    client.post('lock')\n    resp = requests.get(pk)\n    resp.post('x')",
    "a mail that is built": "@app.task(autoretry_for=(OSError,), max_retries=3)\ndef a(pk):\n    m = EmailMessage()\n    return m.as_string()",
    "a task of itself": "@app.task\ndef a(x):\n    a(x - 1)",
    "a script that is told what to do": "@app.task\ndef a(x): ...\n\n\nif __name__ == '__main__':\n    a(sys.argv[1])\n    a(args.url)",
    "a command": "import click\n\n\n@app.task\ndef a(x): ...\n\n\n@click.command()\ndef go():\n    a(1)",
    "the other way": "@app.task\ndef a(x): ...\n\n\ndef view(sync):\n    if sync:\n        a(1)\n    else:\n        a.delay(1)",
    "the other way, if the broker is away": "@app.task\ndef a(x): ...\n\n\ndef view():\n    try:\n        a.delay(1)\n    except OSError:\n        a(1)",
    "the other way, behind a return": "@app.task\ndef a(x): ...\n\n\ndef view(far):\n    if far:\n        a.delay(1)\n        return\n    a(1)",
    "a decorator that sends": "def sent(task):\n    return lambda *args: task.delay(*args)\n\n\n@sent\n@app.task\ndef a(x): ...\n\n\ndef view():\n    a(1)",
    "a task that sends itself": "class Own(app.Task):\n    abstract = True\n\n    def __call__(self, *args):\n        return self.delay(*args)\n\n\n@app.task(base=Own)\ndef a(x): ...\n\n\ndef view():\n    a(1)",
    "a script": "@app.task\ndef a(): ...\n\n\nif __name__ == '__main__':\n    a()",
    "an argument that is called like a module": "import $name as tasks\n\n\n@app.task\ndef a(x): ...\n\n\ndef view(tasks):\n    tasks.a(1)",
    "an animation": "@app.task\ndef a(x): ...\n\n\ndef view():\n    with animation.begin():\n        a.delay(1)",
    "a timer": "def view(timer):\n    timer.set(countdown=7200)",
    "a column": "@app.task\ndef a(x): ...\n\n\ndef view():\n    ids = session.query(Order.id).all()\n    a.delay(ids[0][0])\n    for o in Order.objects.all():\n        a.delay(o['pk'])",
    "a cache's objects": "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.delay(cache.objects.get('key'))",
    "one of two branches": "@app.task\ndef a(sync):\n    if sync:\n        r = compute()\n    else:\n        r = a.delay()\n    if sync:\n        return r.get('total')",
    "a comment behind a form feed": "@app.task\ndef a():\n    y = 'a\\x0cb'\n    return a.delay().get()  # noqa: cp501",
    "a comment at the end": "@app.task\ndef a():\n    return a.apply_async(\n        countdown=1,\n    ).get()  # noqa",
    "an argument that one way sets again": "@app.task\ndef a(x): ...\n\n\ndef view(user):\n    try:\n        user = User.objects.get(username=user)\n    except User.DoesNotExist:\n        a.delay(user)\n        return\n    user.touch()",
    "an argument of the other branch": "@app.task\ndef a(x): ...\n\n\ndef view(ids, sync=False):\n    if sync:\n        ids = set(ids)\n        work(ids)\n    else:\n        a.delay(ids)",
    "an argument behind a branch that left": "@app.task\ndef a(x): ...\n\n\ndef view(ids, inline=False):\n    if inline:\n        ids = set(ids)\n        return work(ids)\n    a.delay(ids)",
    "a case that was another": "@app.task\ndef a(x): ...\n\n\ndef view(kind, x):\n    match kind:\n        case 'sync':\n            x = set(x)\n        case _:\n            a.delay(x)",
    "a comprehension's name that is a view's": "@app.task\ndef a(x): ...\n\n\ndef order(request):\n    return 1\n\n\ndef view(ids):\n    [a.delay(order) for order in ids]",
    "a name that is set again": "@app.task\ndef a(x): ...\n\n\ndef config():\n    return 1\n\n\nconfig = config()\n\n\ndef view():\n    a.delay(config)",
    "somebody's filter": "@app.task\ndef a(x): ...\n\n\ndef filter(rows):\n    return [r for r in rows]\n\n\ndef view(rows):\n    a.delay(filter(rows))\n    a.delay(rows[0].filter('x'))",
    "somebody's path": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from shop.paths import Path\n\n\n@app.task\ndef a(x): ...\n\n\ndef view():\n    a.delay(Path('x'))",
    "somebody's class": "@app.task\ndef a(x): ...\n\n\nclass Point: ...\n\n\ndef view(Point):\n    a.delay(Point())",
    "a serializer of one's own": "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.apply_async(args=[{1}], serializer='mine')\n    a.s({1}).set(serializer='pickle').delay()\n    a.s({1})()\n    a.s({1}).apply()",
    "somebody's result": "import bs4\nfrom multiprocessing.pool import AsyncResult\n\n\n@app.task\ndef a(rows):\n    AsyncResult(1, 2, 3).get()\n    return bs4.ResultSet(rows).get('x')",
    "a pool's self": "class Pool:\n    def run(self, f, x):\n        r = self.apply_async(f, x)\n        return r.get()",
    "a pool in a transaction": "@app.task\ndef a(x): ...\n\n\ndef view(pool, f):\n    with transaction.atomic():\n        pool.apply_async(f)\n        whatsapp.send_task('x')",
    "a moment that was": "@app.task\ndef a(x): ...\n\n\ndef view(order):\n    midnight = datetime.now().replace(hour=0)\n    a.apply_async(eta=midnight + timedelta(hours=9))\n    a.apply_async(eta=order.created_at + timedelta(hours=24))",
    "somebody's countdown": "def view(t, q):\n    t.apply_async(countdown=90000)\n    q.retry(countdown=90000)",
    "made once by a mark": "@app.task(bind=True)\ndef a(self):\n    if not self.initialized:\n        self.model = load()\n        self.initialized = True",
    "made once behind a return": "@app.task(bind=True)\ndef a(self):\n    if self._m is not None:\n        return self._m.run()\n    self._m = load()\n    self.x: int",
    "made once by a choice": "@app.task(bind=True)\ndef a(self):\n    self._m = load() if self._m is None else self._m\n    self.m: object = self.m or load()",
    "a message that is called request": "@app.task\ndef a(x): ...\n\n\ndef chat(request: 'ChatRequest'):\n    a.delay(request.user)\n\n\ndef more(event):\n    request = event.request\n    a.delay(request.user)",
    "columns of a query": "@app.task\ndef a(x): ...\n\n\ndef view(column):\n    for row in Order.query.with_entities(Order.id).all():\n        a.delay(row[0])\n    a.delay(session.query(column).first())\n    a.delay(client.query().first())",
    "behind a star": "@app.task\ndef a(x): ...\n\n\ndef view(y, raw):\n    l = [*y, {1}, 5]\n    a.delay(l[1])\n    e = {'ids': set(raw), **clean(raw)}\n    a.delay(e['ids'])\n    a.delay(e)\n    d = {'ids': set(raw), 'ids': list(raw)}\n    a.delay(d['ids'])",
    "what another function sets": "@app.task\ndef a(x): ...\n\n\npending = set()\n\n\ndef load():\n    global pending\n    pending = [1, 2]\n\n\ndef view():\n    a.delay(pending)",
    "a wait without an end": "@app.task\ndef a(x): ...\n\n\ndef view():\n    a.apply_async(eta=datetime.now() + timedelta(days=10_000_000_000))",
    "a session's row": ("@app.task(autoretry_for=(OSError,))\ndef a():\n    session.delete(row)\n    client.get('/x')"),
    "two attempts": "patterns.use_patterns(app)\n\n\n@app.task(time_limit=9)\n@patterns.retry(on=(TimeoutError, ConnectionError), attempts=2)\ndef a(): ...",
    "a key of the arguments": KEYED.format("lambda order: order.upper()"),
    "a key of a time that is an argument": KEYED.format("lambda order: order.now()"),
    "a key of a stable uuid": f"import uuid\n\n{KEYED.format('lambda order: str(uuid.uuid5(uuid.NAMESPACE_URL, order))')}",
    "arguments of their types": "from decimal import Decimal\nfrom typing import Optional\n\n\n@app.task\ndef a(order: str, n: int, f: float, d: Decimal, o: Optional[str], x, *more: str): ...\n\n\ndef view(given):\n    a.delay('o', True, 1, 3, None, 9.5, 'm')\n    a.delay(*given)\n    a.delay(given, given, f=given, d=given, o=5, x='a')",
    "work in an else": f"{TRIED}def a(x):\n    try:\n        y = work(x)\n    except Exception:\n        return None\n    else:\n        push(y)",
    "a limit that is tried again": f"{TRIED.replace('OSError', 'SoftTimeLimitExceeded')}def a(x):\n    try:\n        work(x)\n    except SoftTimeLimitExceeded:\n        raise\n    except Exception:\n        return None",
    "an error of a client's": f"class Gateway:\n    class TimeoutError(Exception): ...\n\n\n{TRIED.replace('OSError', 'TimeoutError')}def a(x):\n    try:\n        work(x)\n    except Gateway.TimeoutError:\n        return None",
    "an error of a module that the body imports": f"{TRIED.replace('OSError', 'ConnectionError')}def a(x):\n    from errs import ConnectionError\n    try:\n        work(x)\n    except ConnectionError:\n        return None",
    "a look before the try": f"TABLE = {{}}\n\n{TRIED.replace('OSError', 'KeyError')}def a(x):\n    row = TABLE[x]\n    try:\n        work(row)\n    except Exception:\n        print('no')",
    "errors that are usual or others": "patterns.use_patterns(app)\n\n\ndef steady(on=None):\n    return patterns.retry(on=on or (ConnectionError, TimeoutError), attempts=4)\n\n\n@app.task(time_limit=9)\n@steady()\ndef a(): ...",
    "attempts of the environment": "import os\n\npatterns.use_patterns(app)\n\n\n@app.task(time_limit=9)\n@patterns.retry(on=OSError, attempts=int(os.environ.get('TRIES', '1')))\ndef a(): ...",
    "an error of results, and a wider one": "from celery.exceptions import TimeoutError\n\npatterns.use_patterns(app)\n\n\n@app.task(time_limit=9)\n@patterns.retry(on=(OSError, TimeoutError))\ndef a(): ...",
    "a key of a day": f"from datetime import datetime\n\n{KEYED.format('lambda order: (order, datetime.now().date())')}",
    "a key of a day as a text": f"from datetime import datetime\n\n{KEYED.format(chr(108) + 'ambda order: f' + chr(34) + '{order} {datetime.now():%Y-%m-%d}' + chr(34)).replace('{{', '{').replace('}}', '}')}",
    "a key of an hour": f"import time\n\n{KEYED.format('lambda order: (order, time.time() // 3600)')}",
    "a key that a call may bring": f"import uuid\n\n{KEYED.format('lambda order: order or uuid.uuid4().hex')}",
    "a key that is timed": f"import time\n\n\ndef of(order):\n    began = time.perf_counter()\n    print(time.perf_counter() - began)\n    return order\n\n\n{KEYED.format('of')}",
    "a key whose argument is called time": f"import time\n\n{KEYED.format('lambda order, time=None: (order, time.time())').replace('def a(order)', 'def a(order, time)')}",
    "annotations of all kinds": "@app.task\ndef a(ids: [int], one: {'id': int} = None): ...\n\n\ndef view():\n    a.delay(5, 'x')",
    "a delay that converts": "class Own(app.Task):\n    def delay(self, amount):\n        return super().delay(str(amount))\n\n\n@app.task(base=Own)\ndef a(amount: str): ...\n\n\ndef view():\n    a.delay(5)",
    "a task of another module": "@app.task\ndef a(x: int): ...\n\n\ndef view():\n    from others import a\n    a.delay('text')",
    "a name of **": "@app.task\ndef a(*args: int, **kw): ...\n\n\ndef view():\n    a.delay(1, args='x')",
    "an exception that a decorator makes a dict of": "def told(f):\n    @functools.wraps(f)\n    def inner(*args):\n        return {'error': str(f(*args))}\n    return inner\n\n\n@app.task\n@told\ndef a():\n    return ValueError('no')",
    "an exception's name for something else": "Warning = dict\n\n\n@app.task\ndef a():\n    return Warning(a=1)",
    "a body that raises what it catches": f"{TRIED}def a(x):\n    try:\n        work(x)\n    except Exception as error:\n        print(error)\n        raise",
    "a body that raises another": f"{TRIED}def a(x):\n    try:\n        work(x)\n    except Exception as error:\n        raise OSError from error",
    "a body that does something about it": f"{TRIED}def a(x):\n    try:\n        work(x)\n    except Exception as error:\n        mark_failed(x)",
    "a body that catches a part": f"{TRIED}def a(x):\n    fetch(x)\n    try:\n        work(x)\n    except Exception as error:\n        pass",
    "an error that is raised later": f"{TRIED}def a(x):\n    failed = None\n    try:\n        work(x)\n    except OSError as e:\n        failed = e\n    if failed is not None:\n        raise failed",
    "an error that a finally raises": f"{TRIED}def a(x):\n    ok = False\n    try:\n        work(x)\n        ok = True\n    except Exception:\n        pass\n    finally:\n        if not ok:\n            raise OSError",
    "a handler that asserts": f"{TRIED}def a(x):\n    try:\n        work(x)\n    except Exception:\n        assert x, 'no'",
    "a handler that notes it": f"{TRIED}def a(x):\n    try:\n        work(x)\n    except Exception as e:\n        x.errors += [e]",
    "a handler of one kind of several": f"{TRIED.replace('OSError', '(OSError, KeyError)')}def a(x):\n    try:\n        work(x)\n    except OSError:\n        pass",
    "a handler of one kind, and letters of the others": f"patterns.use_store(app, patterns.stores.MemoryStore())\n{TRIED}@patterns.dead_letter()\ndef a(x):\n    try:\n        work(x)\n    except OSError:\n        pass",
    "a handler of another class of the name": f"import redis\n\n{TRIED.replace('OSError', 'redis.exceptions.ConnectionError')}def a(x):\n    try:\n        work(x)\n    except ConnectionError:\n        pass",
    "a whole task of a name that is sent by an instance": "class A(patterns.PatternTask):\n    name = 'x.a'\n    patterns = (patterns.logged(),)\n\n    def run(self): ...\n\n\n@app.task\ndef a(): ...\n\n\ndef view():\n    A().delay()",
    "a whole task that is registered later": "class A(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n    def run(self): ...\n\n\n@app.task\ndef a(): ...\n\n\ndef setup():\n    x = A()\n    app.register_task(x)\n    x.delay()",
    "a whole task and another variable": "class A(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n    def run(self): ...\n\n\n@app.task\ndef a(): ...\n\n\ndef view():\n    job = A()\n    return job.run()\n\n\ndef other(z):\n    job = z\n    job.delay()",
    "a method whose self is not asked for": "class Shop:\n    @app.task\n    def a(self=None, x=1): ...",
    "a body that catches another": f"{TRIED}def a(x):\n    try:\n        work(x)\n    except KeyError:\n        pass",
    "a body that lets through what is tried again": f"{TRIED}def a(x):\n    try:\n        work(x)\n    except OSError:\n        raise\n    except Exception:\n        pass",
    "a body that asks for another try": f"{TRIED.replace('(time', '(bind=True, time')}def a(self, x):\n    try:\n        work(x)\n    except Exception:\n        self.retry()",
    "a body that swallows, without patterns": "@app.task\ndef a(x):\n    try:\n        work(x)\n    except Exception:\n        pass",
    "a method that is bound": "class Shop:\n    @app.task(bind=True)\n    def a(self, order): ...",
    "a method that a registered task is sent by": "class A(patterns.PatternTask):\n    patterns = (patterns.logged(),)\n\n    def run(self): ...\n\n\npatterns.use_patterns(app)\na = app.register_task(A())\n\n\ndef view():\n    a.delay()",
    "a task of a class": "class A(app.Task):\n    name = 'a'\n\n    def run(self):\n        return 1\n\n\napp.register_task(A())",
    "awaited by a decorator": (
        "def awaited(f):\n    @functools.wraps(f)\n    def inner(*a, **k):\n        return 1\n    return inner\n\n\n@app.task\n@awaited\nasync def a(url): ..."
    ),
    "rebuilt by a decorator": (
        "def rebuilt(f):\n    @functools.wraps(f)\n    def inner(x):\n        return f(set(x))\n    return inner\n\n\n@app.task\n@rebuilt\ndef a(x: set): ..."
    ),
    "spared by autoretry": (
        "@app.task(autoretry_for=(Exception,), dont_autoretry_for=(SoftTimeLimitExceeded,), soft_time_limit=1, max_retries=2)\ndef a(): ..."
    ),
}


#: Without a result backend, or of a task whose results are ignored: each is found once.
SHOWN = {
    "its state": "r = a.delay()\n    return r.state",
    "its value": "return a.delay().result",
    "the state of one of many": "rs = [a.delay() for _ in range(2)]\n    return [r.status for r in rs]",
}


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize(
    ("before", "after", "id_"),
    [(', backend="redis://127.0.0.1:6379/0"', "", "CP510"), ("@app.task", "@app.task(ignore_result=True)", "CP511")],
)
def test_what_is_read_of_a_result_without_a_call(name: str, before: str, after: str, id_: str, tmp_path: Path) -> None:
    """A state that nothing keeps is read as well as a value that one waits for."""
    text = f"{HEAD}\n\n@app.task\ndef a(): ...\n\n\ndef view():\n    {SHOWN[name]}\n".replace(before, after)
    project = Project(tmp_path, text, {"queue": "q"})
    try:
        found = examine(project.app, offline=True, source=[tmp_path / f"{project.name}.py"]).findings
        assert [one.id for one in found] == [id_]
    finally:
        project.close()


#: Names that are there when the body runs, or that it reckons with.
NAMES = {
    "a name that is set later": "@app.task\ndef a(x):\n    return later(x)\n\n\ndef later(x): ...",
    "a name that is set at a run": "@app.task\ndef a(x):\n    global made\n    made = x\n    return made\n\n\n@app.task\ndef b():\n    return made",
    "a name that globals() is asked for": "@app.task\ndef a(x):\n    if 'tracer' in globals():\n        tracer.mark(x)",
    "a name that a worker sets as it starts": "def begin(**_):\n    import sys\n    sys.modules[__name__].client = object()\n\n\n@app.task\ndef a(x):\n    return client.get(x)",
    "a name of another Python": "@app.task\ndef a(x):\n    return x if sys.version_info > (3,) else long(x)",
    "a name that is suppressed": "@app.task\ndef a(x):\n    with contextlib.suppress(NameError):\n        shell().quiet()",
    "a name that may not be there": "@app.task\ndef a(x):\n    try:\n        return reveal(x)\n    except NameError:\n        return x",
    "names of all kinds": "@app.task\ndef a(x, *y, **z):\n    import os\n    from sys import argv as words\n    class C:\n        v = x\n        def f(self):\n            return C.v, __name__, __file__, super()\n    def g(n=1, *, m: int = 2):\n        nonlocal x\n        x = n\n        return [k for k, v in z.items() if (w := v) and w], os, words\n    with open(x) as f, contextlib.suppress(OSError) as h:\n        pass\n    for i, (j, *l) in enumerate(y):\n        del j\n    made = lambda q, /, r=x: (q, r)\n    print(len(x), C, g, made, f, h, i, l)",
}


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Callable[[str], list[tuple[str, str]]]]:
    """What is found in a module; nobody connects to its servers."""
    projects: list[Project] = []

    def examined(source: str, *ignore: str) -> list[tuple[str, str]]:
        project = Project(tmp_path, f"{HEAD}\n\n{source}\n", {"queue": "q"})
        projects.append(project)
        result = examine(project.app, offline=True, source=[tmp_path / f"{project.name}.py"], ignore=ignore)
        assert not [what for what in result.unchecked if what.startswith("CP")]
        return [(one.id, one.what) for one in result.findings]

    yield examined
    for project in projects:
        project.close()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_however_it_is_written(name: str, found: Any) -> None:
    """Once, by the rule that is for it."""
    id_, source = MISTAKES[name]
    assert [one for one, _ in found(source, *({"CP528"} - {id_}))] == [id_]  # what they call is nowhere


@pytest.mark.parametrize("name", RIGHT)
def test_right_code_that_looks_like_a_mistake(name: str, found: Any) -> None:
    """The doctor is silent."""
    assert found(RIGHT[name], "CP528") == []


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_there(name: str, found: Any) -> None:
    """Whoever sets them, and wherever; and one that may not be there, where the body says so."""
    assert found(NAMES[name]) == []


def test_tasks_of_other_libraries_are_none_of_celerys(tmp_path: Path, found: Any) -> None:
    """Others have a decorator of this name, too; and what is in tests is no task of the app's."""
    assert found("@app.task\ndef a(): ...") == []
    (tmp_path / "flows.py").write_text("from prefect import task\n\n\n@task\ndef load(): ...\n")
    (tmp_path / "tests.py").write_text("from celery import shared_task\n\n\n@shared_task\ndef load(): ...\n")
    app = _app_of(tmp_path)
    assert [one.id for one in examine(app, offline=True, source=[tmp_path]).findings] == []
    (tmp_path / "more.py").write_text("from celery import shared_task\n\n\n@shared_task\ndef load(): ...\n")
    assert [one.id for one in examine(app, offline=True, source=[tmp_path]).findings] == ["CP508"]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """The others are read; one in another encoding, or that begins with a mark of it, is read as Python reads it."""
    (tmp_path / "old.py").write_text("print 'old'\n")
    (tmp_path / "marked.py").write_bytes(b"\xef\xbb\xbfx = 1\n")
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    result = examine(_app_of(tmp_path), offline=True, source=[tmp_path])
    assert [what for what in result.unchecked if ".py" in what] == [
        f"{tmp_path / 'old.py'}:1, which cannot be read as Python (SyntaxError)"
    ]


def _app_of(folder: Path) -> Any:
    from celery import Celery

    return Celery(f"app-{folder.name}", broker="redis://127.0.0.1:6379/0", set_as_current=False)


def test_a_project_below_a_folder_that_is_called_tests(tmp_path: Path) -> None:
    """What is left out is left out within the project, and not for where it stands."""
    project = Project(
        tmp_path / "tests" / "x", f"{HEAD}\n\n{textwrap.dedent(MISTAKES['a set in a dict'][1])}\n", {"queue": "q"}
    )
    try:
        assert "CP509" in [one.id for one in examine(project.app, timeout=1, ignore=["CP201"]).findings]
    finally:
        project.close()


def test_a_tasks_of_another_app_is_its_own(tmp_path: Path) -> None:
    """A project may have two apps; the one that is not looked at has its own modules."""
    name = f"pkg_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    made = (
        'from celery import Celery\n\napp = Celery("NAME", broker="redis://127.0.0.1:6379/0", set_as_current=False)\n'
    )
    (folder / "other.py").write_text(made.replace("NAME", "other"))
    (folder / "main.py").write_text(f"from {name}.other import app as other\n{made.replace('NAME', 'main')}")
    (folder / "tasks.py").write_text(f"from {name}.other import app\n\n\n@app.task\ndef invoice(x): ...\n")
    sys.path.insert(0, str(tmp_path))
    try:
        app = importlib.import_module(f"{name}.main").app
    finally:
        sys.path.remove(str(tmp_path))
    assert examine(app, offline=True, source=[folder]).findings == ()


def test_an_environment_in_the_project_is_left_out(tmp_path: Path) -> None:
    """What is installed there is others', whatever the folder is called."""
    packages = tmp_path / "env" / "lib" / "other"
    packages.mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (packages / "tasks.py").write_text("from celery import shared_task\n\n\n@shared_task\ndef load(): ...\n")
    assert examine(_app_of(tmp_path), offline=True, source=[tmp_path]).findings == ()


def test_a_long_file_takes_seconds(tmp_path: Path) -> None:
    """Each function is read once, however many names are asked for."""
    lines = [
        f"    v{n} = d.get({n})\n    logger.info('x %s', v{n})\n    a.delay(P())\n    a.delay(f{n})"
        for n in range(2500)
    ]
    functions = "".join(f"def f{n}(): ...\n" for n in range(2500))
    source = (
        f"from celery import shared_task\n\n\nclass P: ...\n\n\n{functions}\n@shared_task\ndef a(x):\n    d = {{}}\n"
    )
    (tmp_path / "long.py").write_text(source + "\n".join(lines) + "\n")
    began = time.monotonic()
    found = examine(_app_of(tmp_path), offline=True, source=[tmp_path], ignore=["CP508"])
    assert len(found.findings) == 5000
    assert time.monotonic() - began < 30
