"""Quantised storage: which tensors are codes, of which format, and which tensors belong to them.

Codes are not weights. `detection.detect` finds them by the names, dtypes and shapes of the headers and by the
config; one file per scheme knows its layout.
"""

from deltaw.checkpoints.quantised.detection import Detection, detect
from deltaw.checkpoints.quantised.handle import QuantisedHandle, numeric
from deltaw.checkpoints.quantised.module import Codes, ModuleTensors, Quantisation, ScaledBytes

__all__ = ["Codes", "Detection", "ModuleTensors", "Quantisation", "QuantisedHandle", "ScaledBytes", "detect", "numeric"]
