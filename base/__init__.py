"""The ground floor, which every room may use: the error of a user's mistake, files under limits, tables, registries.

Read `errors`, then `parse`, `table` and `registry`. Nothing here knows of data, models or training, and nothing here
loads torch.
"""

from .errors import UserError, aligned, nearest
from .parse import JSON_BYTES, Json, json_object, json_of, json_record, named, no_file, read_bytes, read_json, read_toml, shown
from .registry import Registry, load_plugins
from .table import Decay, Degree, Fraction, Name, NonNegative, Positive, Table, Weight, changed

__all__ = [
    "JSON_BYTES",
    "Decay",
    "Degree",
    "Fraction",
    "Json",
    "Name",
    "NonNegative",
    "Positive",
    "Registry",
    "Table",
    "UserError",
    "Weight",
    "aligned",
    "changed",
    "json_object",
    "json_of",
    "json_record",
    "load_plugins",
    "named",
    "nearest",
    "no_file",
    "read_bytes",
    "read_json",
    "read_toml",
    "shown",
]
