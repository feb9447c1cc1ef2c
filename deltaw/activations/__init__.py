"""What the inputs x of every matrix are on a data set: their second moments, collected, stored, and met by ΔW."""

from deltaw.activations.collecting import collect_activations
from deltaw.activations.file import Activations, open_activations

__all__ = ["Activations", "collect_activations", "open_activations"]
