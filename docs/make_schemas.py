"""Write the JSON Schemas of what `--json` prints, from the types and the columns that the documents are made of.

Run `python docs/make_schemas.py` after a change of them; a test compares.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from deltaw.edits import ExtractedRow, SavedModule
from deltaw.measurement.inspection import Expected
from deltaw.metrics import REGISTRY
from deltaw.results.analysis import SCHEMA_VERSION
from deltaw.results.columns import columns
from deltaw.results.shares import Share
from deltaw.results.summary import Summary
from deltaw.surveys.merging import Interference, MergeShare
from deltaw.surveys.pairs import COLUMNS as PAIRS
from deltaw.surveys.result import SCHEMA_VERSION as SURVEY_VERSION
from deltaw.surveys.tables import ADAPTERS, TEXTS, WHOLE, SurveyRecord
from deltaw.tensors.quantisers import QUANTISERS
from deltaw.types import Coverage, IntruderCount
from deltaw.verification import Survival, TensorVerdict

Schema = dict[str, object]
FOLDER = Path(__file__).parent.parent / "deltaw" / "schemas"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
NUMBER: Schema = {"type": ["number", "null"]}
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}


def of(kind: object) -> Schema:
    """The schema of a Python type: floats may be null (NaN), dataclasses are objects with all of their fields."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return closed({f.name: of(hints[f.name]) for f in dataclasses.fields(kind)})
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"enum": [member.value for member in kind]}
    if origin in {typing.Union, types.UnionType}:
        return {"anyOf": [of(a) for a in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": of(arguments[1])}
    if origin in {tuple, Sequence, list}:
        return {"type": "array", "items": of(arguments[0])}
    plain: dict[object, Schema] = {float: NUMBER, str: TEXT, type(None): {"type": "null"}}
    return {**plain, int: {"type": "integer"}, bool: {"type": "boolean"}}[kind]


def closed(properties: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object that has all of these properties, and may have others that a later version adds."""
    return {"type": "object", "properties": {**properties, **(optional or {})}, "required": [*properties]}


def document(title: str, properties: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """A whole schema."""
    return {"$schema": DRAFT, "title": title, **closed(properties, optional)}


def table(fields: Mapping[str, Schema]) -> Schema:
    """A list of records."""
    return {"type": "array", "items": closed(fields)}


def side() -> Schema:
    """One side of an analysis; empty where there is no base."""
    known: dict[str, Schema] = {
        "path": TEXT,
        "revision": {"type": ["string", "null"]},
        "format": TEXT,
        "tensors": COUNT,
        "bytes": COUNT,
    }
    return {"anyOf": [{"type": "object", "maxProperties": 0}, closed(known)]}


def skipped() -> Schema:
    """The tensors without a row."""
    return table({"name": TEXT, "reason": TEXT, "detail": TEXT})


def row() -> dict[str, Schema]:
    """The columns of `layers`."""
    units: dict[str, Schema] = {"word": TEXT, "count": {"type": ["integer", "null"]}}
    return {name: {**units.get(c.unit, NUMBER), **described(c)} for name, c in columns().items()}


def survey_column(name: str) -> Schema:
    """A column of a survey's tables."""
    if name in {"exact"}:
        return {"type": "boolean"}
    kind: Schema = TEXT if name in TEXTS else {"type": ["integer", "null"]} if name in WHOLE else NUMBER
    return {**kind, **described(REGISTRY.get(name))}


def described(column: object) -> Schema:
    """What a metric says of itself."""
    text = getattr(column, "description", "")
    return {"description": text} if text else {}


def schemas() -> dict[str, Schema]:
    """Every schema by its file's name."""
    outcome = closed({"condition": TEXT, "value": NUMBER, "name": TEXT, "holds": {"type": "boolean"}})
    pair: dict[str, Schema] = dict.fromkeys(("name", "stack", "module", "kind", "part", "ft_dtype", "route"), TEXT)
    pair |= dict.fromkeys(("rows", "cols", "ndim"), COUNT) | {"layer": {"type": ["integer", "null"]}}
    either: Schema = {"type": ["string", "null"]}
    records: Schema = {"type": "array", "items": {"type": "object"}}
    return {
        "analysis": document(
            "What deltaw analyze measured (analysis.json, and analyze --json)",
            {
                "schema_version": {"const": SCHEMA_VERSION},
                "versions": of(Mapping[str, str]),
                "base": side(),
                "ft": side(),
                "options": {"type": "object"},
                "command": TEXT,
                "date": TEXT,
                "device": TEXT,
                "seconds": NUMBER,
                "skipped": skipped(),
                "share": {"anyOf": [{"type": "null"}, of(Share)]},
                "notes": of(list[str]),
                "summary": of(Summary),
                "intruders": {"type": "array", "items": of(IntruderCount)},
            },
            {"out": TEXT, "layers": table(row()), "fail_if": {"type": "array", "items": outcome}},
        ),
        "inspect": document(
            "What deltaw analyze would compare (inspect --json)",
            {
                "base": side(),
                "ft": side(),
                "pairs": table({**pair, "base_dtype": either, "base_name": either}),
                "skipped": skipped(),
                "coverage": of(Coverage),
                "notes": of(list[str]),
                "expected": of(Expected),
            },
        ),
        "compare": document(
            "What several runs show (compare --json)",
            {
                "title": TEXT,
                "reference": TEXT,
                "groups": of(list[str]),
                "warnings": of(list[str]),
                "similarity_note": TEXT,
                "runs": table({"run": TEXT, "group": TEXT}),
                "contrasts": table({"metric": TEXT, "group_a": TEXT, "group_b": TEXT}),
                "fingerprints": table({"group": TEXT, "n_seeds": COUNT}),
                "fronts": records,
                "trajectories": records,
                "similarity": records,
                "predictors": table({"runs": TEXT, "outcome": {"enum": ["retention", "learning"]}, "predictor": TEXT}),
                "claims": table(
                    {
                        "claim": TEXT,
                        "text": TEXT,
                        "about": TEXT,
                        "verdict": {"enum": ["agrees", "disagrees", "cannot tell"]},
                        "basis": {"enum": ["intervals", "test items only", "points", ""]},
                        "says": TEXT,
                        "rule": TEXT,
                        "source": TEXT,
                    }
                ),
            },
            {"out": TEXT},
        ),
        "survey": document(
            "Many adapters of one base (survey --json)",
            {
                "schema_version": {"const": SURVEY_VERSION},
                **of(SurveyRecord)["properties"],  # type: ignore[dict-item]
                "adapters": table({name: survey_column(name) for name in ADAPTERS}),
                "pairs": table({name: survey_column(name) for name in PAIRS}),
                "merge_check": {"anyOf": [{"type": "null"}, closed({
                    "names": of(list[str]),
                    "density": NUMBER,
                    "interference": of(list[Interference]),
                    "kept": of(list[MergeShare]),
                })]},
            },
            {"out": TEXT},
        ),
        "extract": document(
            "An adapter that was extracted, and what it keeps (extract --json, resize --json)",
            {
                "out": TEXT,
                "base": side(),
                "ft": {"type": "array", "items": side()},
                "policy": {"type": "object"},
                "dtype": {"enum": ["bfloat16", "float16", "float32"]},
                "parameters": COUNT,
                "energy_kept": NUMBER,
                "relative_error": NUMBER,
                "gap": NUMBER,
                "layers": {"type": "array", "items": of(ExtractedRow)},
                "saved": {"type": "array", "items": of(SavedModule)},
                "skipped": skipped(),
                "notes": of(list[str]),
                "command": TEXT,
            },
        ),
        "verify": document(
            "Whether a merged checkpoint is its base plus an adapter, or what its quantising leaves (verify --json)",
            {"base": TEXT, "adapter": TEXT, "survival": NUMBER, "tensors": {"type": "array"}},
        )
        | {
            "anyOf": [
                closed(
                    {
                        "merged": TEXT,
                        "passed": {"type": "boolean"},
                        "counts": of(Mapping[str, int]),
                        "tensors": {"type": "array", "items": of(TensorVerdict)},
                    }
                ),
                closed(
                    {
                        "format": {"enum": [*QUANTISERS]},
                        "noise": NUMBER,
                        "tensors": {"type": "array", "items": of(Survival)},
                        "skipped": skipped(),
                    }
                ),
            ]
        },
    }  # fmt: skip


def written(schema: Schema) -> str:
    """A schema as its file holds it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (FOLDER / f"{name}.json").write_text(written(schema), encoding="utf-8")
