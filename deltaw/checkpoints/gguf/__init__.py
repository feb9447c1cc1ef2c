"""GGUF, the format of llama.cpp: read as transformers' tensors (extra `deltaw[gguf]`)."""

from deltaw.checkpoints.gguf.arrangement import unpermuted
from deltaw.checkpoints.gguf.names import ARCHITECTURES, renamed
from deltaw.checkpoints.gguf.reading import GgufContents, open_gguf

__all__ = ["ARCHITECTURES", "GgufContents", "open_gguf", "renamed", "unpermuted"]
