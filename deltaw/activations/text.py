"""Activations of a transformers model on text files: `deltaw activations`."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from deltaw.activations.collecting import SKETCH_ABOVE, SKETCH_ROWS, collect_activations
from deltaw.activations.file import Activations
from deltaw.documents import Document, read_object, read_text
from deltaw.errors import ActivationsError, MissingExtraError
from deltaw.files import expanded, near_path

LENGTH = 512  # tokens of a block, unless the model takes fewer
TOKENS = 65_536
CPU = torch.device("cpu")
LARGEST_TEXT = 4 << 30  # bytes of a text file


@dataclass(frozen=True)
class Text:
    """Text as blocks of tokens.

    Attributes:
        blocks: Token ids; all of one length but for the last.
        files: How many files they are of.
        complete: Whether all of the text is in them.
    """

    blocks: Sequence[Sequence[int]]
    files: int
    complete: bool

    @property
    def tokens(self) -> int:
        """In all blocks."""
        return sum(map(len, self.blocks))

    @property
    def says(self) -> str:
        """What the data is, in words."""
        what = "file" if self.files == 1 else "files"
        return f"{self.tokens:,} tokens of {self.files:,} text {what}{'' if self.complete else ', not all of them'}"

    def batches(self, size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of blocks of one length, as a transformers model takes them."""
        whole = [b for b in self.blocks if len(b) == len(self.blocks[0])]
        groups = [whole[i : i + size] for i in range(0, len(whole), size)]
        rest = self.blocks[len(whole) :]
        for blocks in [*groups, *([rest] if rest else [])]:
            ids = torch.tensor([list(b) for b in blocks], dtype=torch.int64)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def collect_from_text(
    model: str,
    text: Sequence[str | Path],
    out: str | Path,
    *,
    tokens: int = TOKENS,
    length: int | None = None,
    batch: int = 8,
    device: torch.device = CPU,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    sketch_above: int = SKETCH_ABOVE,
    sketch_rows: int = SKETCH_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> Activations:
    """Load a transformers model, run it over text, and write the second moments of every matrix's inputs.

    Args:
        model: A directory with a model and its tokenizer, or a Hub id. No code of its own is run.
        text: Text files, UTF-8; folders, whose files are taken; or patterns.
        out: The file to write.
        tokens: How many are read at most, over all files, from their beginnings on.
        length: Of a block; by default 512, or what the model takes if that is fewer.
        batch: Blocks at a time.
        device: Where the model runs: on a CPU in float32, else as it is stored.
        include, exclude, sketch_above, sketch_rows: As `collect_activations` has them.
        progress: Called with the number of batches and of all batches, after each.

    Raises:
        ActivationsError: The model or a text cannot be used, or the file cannot be written.
        MissingExtraError: transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise MissingExtraError(
            "deltaw activations needs transformers, which is not installed; run: pip install 'deltaw[study]', or give "
            "your own model to deltaw.collect_activations"
        )
    files = text_files(text)
    config = _config(model)
    tokenizer = _loaded("AutoTokenizer", model)
    found = blocks(tokenizer, files, length or _length(tokenizer, config), tokens)
    loaded = _model(model, config, device)
    batches = -(-len(found.blocks) // batch)
    return collect_activations(
        loaded,
        found.batches(batch),
        out,
        include=include,
        exclude=exclude,
        sketch_above=sketch_above,
        sketch_rows=sketch_rows,
        inputs=found.says,
        progress=None if progress is None else lambda done: progress(done, max(done, batches)),
    )


def text_files(given: Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders and patterns name, each once, in order.

    Raises:
        ActivationsError: One names nothing.
    """
    out: dict[Path, None] = {}
    for name in given:
        path = expanded(name)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        elif path.exists():
            found = [path]
        else:
            # not Path.glob, which takes no absolute pattern
            found = [p for name in sorted(glob.glob(str(path), recursive=True)) if (p := Path(name)).is_file()]  # noqa: PTH207
        if not found:
            what = "a folder without files" if path.is_dir() else "no such file"
            raise ActivationsError(f"{path}: {what}; expected text files, UTF-8.{near_path(path)}")
        out |= dict.fromkeys(found)
    return [*out]


def blocks(tokenizer: Any, files: Sequence[Path], length: int, tokens: int) -> Text:
    """Texts end to end, with the end-of-text token behind each where there is one, cut to blocks.

    Raises:
        ActivationsError: A file cannot be read, or there is no text.
    """
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    stream: list[int] = []
    used = 0
    complete = True
    for path in files:
        if len(stream) >= tokens:
            complete = False
            break
        text = read_text(path, error=ActivationsError, largest=LARGEST_TEXT)
        most = 64 * (tokens - len(stream))  # characters: no tokenizer takes more for one token, but for rare runs
        complete &= len(text) <= most
        # A whole file is longer than any context; that is what blocks are for, so no warning about it.
        found = tokenizer(text[:most], add_special_tokens=False, verbose=False)["input_ids"]
        if found:
            used += 1
            stream += [*found, *end]
    complete &= len(stream) <= tokens
    stream = stream[:tokens]
    if not stream:
        raise ActivationsError(f"{files[0]}: holds no text; expected text files, UTF-8")
    return Text([stream[i : i + length] for i in range(0, len(stream), length)], used, complete)


def _config(model: str) -> Document:
    folder = expanded(model)
    if (folder / "adapter_config.json").is_file():
        raise ActivationsError(f"{model}: is an adapter; give the base that it is for")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ActivationsError(f"{model}: has no config.json; expected a transformers model with its tokenizer")
    if folder.exists() and not folder.is_dir():
        raise ActivationsError(f"{model}: is a file; expected the directory of a transformers model")
    if folder.is_dir():
        return read_object(folder / "config.json", error=ActivationsError)
    found = _loaded("AutoConfig", model)
    return Document(found.to_dict(), model, ActivationsError)


def _length(tokenizer: Any, config: Document) -> int:
    """How long a block is: what the model takes, at most 512."""
    known = (config.values.get(key) for key in ("max_position_embeddings", "n_positions", "n_ctx"))
    limits = [n for n in (*known, tokenizer.model_max_length) if isinstance(n, int) and n > 0]
    return min(LENGTH, *limits)


def _model(model: str, config: Document, device: torch.device) -> torch.nn.Module:
    architecture = next(iter(config.texts("architectures")), "")
    if architecture.endswith("ForConditionalGeneration") or config.flag("is_encoder_decoder"):
        raise ActivationsError(
            f"{model}: a {architecture} takes more than text; give its batches to deltaw.collect_activations"
        )
    kind = "AutoModelForMaskedLM" if architecture.endswith("ForMaskedLM") else "AutoModelForCausalLM"
    kind = kind if "LM" in architecture else "AutoModel"
    loaded: torch.nn.Module = _loaded(kind, model, dtype=torch.float32 if device.type == "cpu" else "auto")
    return loaded.to(device)


def _loaded(kind: str, model: str, **options: object) -> Any:
    """What transformers loads of a model, by one of its `Auto` classes.

    Raises:
        ActivationsError: It cannot.
    """
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(model, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as e:
        why = " ".join(str(e).split())
        raise ActivationsError(f"{model}: cannot be loaded by transformers.{kind} ({why})") from e
