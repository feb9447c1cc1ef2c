"""GGUF, the format of llama.cpp: read as transformers' tensors (extra `deltaw[gguf]`)."""

from deltaw.checkpoints.gguf.reading import Opened, open_gguf

__all__ = ["Opened", "open_gguf"]
