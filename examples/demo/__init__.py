"""The demo: a shop has a bad afternoon, and no order is lost, charged twice or worked on again. See ``make demo``."""
