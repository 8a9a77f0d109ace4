"""Isolated work: everything that may crash runs in a process of its own, forked from a warm server."""

from tfdeploy_magic.jobs.client import Worker, warm_up
from tfdeploy_magic.jobs.progress import Progress, Report, silent

__all__ = ["Progress", "Report", "Worker", "silent", "warm_up"]
