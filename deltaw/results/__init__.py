"""An analysis, its summary, and the files that keep it."""
