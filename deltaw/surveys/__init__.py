"""Many adapters of one base: a row of each, how alike they are, who belongs together, and what stands out."""

from deltaw.surveys.result import Survey
from deltaw.surveys.run import survey

__all__ = ["Survey", "survey"]
