"""Who else used the machine meanwhile: the numbers are only as good as it was quiet."""

from __future__ import annotations

import resource

import psutil


class Load:
    """The machine's CPU time since this object was made."""

    def __init__(self) -> None:
        self._machine = psutil.cpu_times()
        self._ours = _ours()

    def text(self) -> str:
        """What others used, in percent of all CPU time; call it when every process of the bench has ended."""
        now = psutil.cpu_times()
        spent = {name: getattr(now, name) - getattr(self._machine, name) for name in now._fields if name != "guest"}
        total = sum(spent.values())
        idle, stolen = spent["idle"] + spent.get("iowait", 0.0), spent.get("steal", 0.0)
        others = max(0.0, total - idle - stolen - (_ours() - self._ours))
        return f"{others / total:.0%} of the CPU time went to other processes, {stolen / total:.0%} to other machines"


def _ours() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
