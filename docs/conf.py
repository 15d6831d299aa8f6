"""How the documentation is built: `make docs`, with warnings as errors."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "celery-patterns"
author = "the celery-patterns developers"
project_copyright = "2026, the celery-patterns developers"
release = version_of("celery-patterns")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"celery-patterns {release}"
html_copy_source = False
