"""The doctor: what is wrong with an app's settings, servers, workers and source, before production finds it.

Data goes one way. What is known of the app is looked up once, in ``_tasks``, ``_address``, ``_reach``, ``_servers``,
``_workers`` and ``_source``, and becomes a case, ``_case``; each rule in ``_rules`` reads the case and says what it sees,
``_finding``.
"""

from __future__ import annotations

from ._django import system_check
from ._examine import IGNORE, Examination, Profile, examine
from ._finding import SEVERITIES, Finding, Rule, Severity
from ._rules import RULES

__all__ = [
    "IGNORE",
    "RULES",
    "SEVERITIES",
    "Examination",
    "Finding",
    "Profile",
    "Rule",
    "Severity",
    "examine",
    "system_check",
]
