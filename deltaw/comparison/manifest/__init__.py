"""The manifest of a comparison: which runs, of which base, with which scores."""

from deltaw.comparison.manifest.reading import AXES, Manifest, RunSpec, lone_groups, read_manifest

__all__ = ["AXES", "Manifest", "RunSpec", "lone_groups", "read_manifest"]
