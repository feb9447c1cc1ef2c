"""Singular values and vectors of ΔW: exact, factored, certified low rank, stochastic estimates."""

from deltaw.spectra.bootstrap import by_line, stored_again
from deltaw.spectra.estimate import estimate_spectrum
from deltaw.spectra.exact import singular_values, singular_values_batched
from deltaw.spectra.factored import factored_singular_values, factored_svd
from deltaw.spectra.krylov import Operator, top_triplets
from deltaw.spectra.leading import leading_triplets
from deltaw.spectra.low_rank import Noise, low_rank_spectrum
from deltaw.spectra.route import spectrum
from deltaw.spectra.start import seeded
from deltaw.spectra.triplets import BoundedTriplets, Triplets

__all__ = [
    "BoundedTriplets",
    "Noise",
    "Operator",
    "Triplets",
    "by_line",
    "estimate_spectrum",
    "factored_singular_values",
    "factored_svd",
    "leading_triplets",
    "low_rank_spectrum",
    "seeded",
    "singular_values",
    "singular_values_batched",
    "spectrum",
    "stored_again",
    "top_triplets",
]
