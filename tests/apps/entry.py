"""What a worker process is pointed at: the app, made from the environment."""

from __future__ import annotations

from .floor import make_app

app = make_app()
