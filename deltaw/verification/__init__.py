"""Is a merged checkpoint its base plus the adapter, and would the update survive quantisation?"""

from deltaw.verification.merges import Verification, verify
from deltaw.verification.sums import TensorVerdict
from deltaw.verification.survival import Prediction, Survival, predict

__all__ = ["Prediction", "Survival", "TensorVerdict", "Verification", "predict", "verify"]
