"""An update against the singular vectors of its base, and their cache."""
