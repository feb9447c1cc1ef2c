"""ΔW while a model trains: a few numbers for the log, the per-layer table as a file, and early warnings by rule."""

from deltaw.monitoring.alerts import Alert
from deltaw.monitoring.monitor import Monitor, Record

__all__ = ["Alert", "Monitor", "Record"]
