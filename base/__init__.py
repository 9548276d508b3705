"""The ground floor, which every room may use: the error of a user's mistake, TOML tables, registries,
and text from outside made fit to be shown.

Read `errors` and `outside`, then `table`, then `registry`. Nothing here knows of data, models or training, and nothing
here loads torch.
"""

from .errors import UserError, aligned, nearest
from .outside import is_withheld, one_line, presentable, printable, public_name, redacted, without_credentials
from .registry import Registry, load_plugins
from .table import Decay, Degree, Fraction, Name, NonNegative, Positive, Table, Weight, changed

__all__ = [
    "Decay",
    "Degree",
    "Fraction",
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
    "load_plugins",
    "nearest",
    "one_line",
    "presentable",
    "printable",
    "public_name",
    "redacted",
    "without_credentials",
]
