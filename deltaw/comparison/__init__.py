"""Contrasts between runs of one base: what LoRA, full fine-tuning, weight decay or dropout did differently."""

from deltaw.comparison.comparison import Comparison, compare
from deltaw.comparison.manifest import Manifest, RunSpec, read_manifest

__all__ = ["Comparison", "Manifest", "RunSpec", "compare", "read_manifest"]
