"""The ground floor, which every room may use: the error of a user's mistake, files under limits, tables, registries.

Text from outside is made fit to be shown here too. Read `errors` and `outside`, then `parse`, `table` and `registry`.
Nothing here knows of data, models or training, and nothing here loads torch.
"""

from .errors import UserError, aligned, nearest
from .outside import is_withheld, one_line, presentable, printable, public_name, redacted, without_credentials
from .parse import JSON_BYTES, Json, json_object, json_of, json_record, named, no_file, read_bytes, read_json, read_toml, shown
from .registry import Registry, load_plugins, load_saved_plugins
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
    "is_withheld",
    "json_object",
    "json_of",
    "json_record",
    "load_plugins",
    "load_saved_plugins",
    "named",
    "nearest",
    "no_file",
    "one_line",
    "presentable",
    "printable",
    "public_name",
    "read_bytes",
    "read_json",
    "read_toml",
    "redacted",
    "shown",
    "without_credentials",
]
