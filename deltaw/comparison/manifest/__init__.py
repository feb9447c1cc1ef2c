"""The manifest of a comparison: which runs, of which base, with which scores."""

from deltaw.comparison.manifest.drafting import Draft, draft
from deltaw.comparison.manifest.reading import AXES, Manifest, RunSpec, lone_groups, read_manifest

__all__ = ["AXES", "Draft", "Manifest", "RunSpec", "draft", "lone_groups", "read_manifest"]
