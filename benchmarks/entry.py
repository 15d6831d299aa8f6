"""What a worker's process is pointed at."""

from __future__ import annotations

import os

from .app import Site, make_app

app = make_app(Site.read(os.environ))
