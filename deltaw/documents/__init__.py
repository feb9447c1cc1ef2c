"""What others wrote: JSON, TOML, YAML, CSV and regular expressions, bounded when read and typed when they are asked.

Whatever a file holds, what comes out is a value of the type that was asked for, or one line that says where it stands,
what was found and what was expected.
"""

from deltaw.documents.objects import (
    Document,
    is_number,
    is_score,
    parse_json,
    parse_object,
    read_object,
    read_text,
    shown,
)
from deltaw.documents.patterns import Pattern, compile_pattern
from deltaw.documents.tables import read_table
from deltaw.documents.toml import KeyPath, Toml, parse_toml
from deltaw.documents.yaml import parse_yaml_list, parse_yaml_object

__all__ = [
    "Document",
    "KeyPath",
    "Pattern",
    "Toml",
    "compile_pattern",
    "is_number",
    "is_score",
    "parse_json",
    "parse_object",
    "parse_toml",
    "parse_yaml_list",
    "parse_yaml_object",
    "read_object",
    "read_table",
    "read_text",
    "shown",
]
