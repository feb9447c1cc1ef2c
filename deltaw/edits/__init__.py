"""A spectrum's directions written as an adapter (`extract`), at other ranks (`resize`), or as a checkpoint (`edit`)."""

from deltaw.edits.edited import Edited
from deltaw.edits.editing import edit
from deltaw.edits.extracted import ExtractedRow, Extraction, SavedModule
from deltaw.edits.extraction import extract
from deltaw.edits.resizing import resize

__all__ = ["Edited", "ExtractedRow", "Extraction", "SavedModule", "edit", "extract", "resize"]
