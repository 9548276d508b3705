"""The ground floor, which every room may use: the error of a user's mistake, TOML tables, registries.

Read `errors`, then `table`, then `registry`. Nothing here knows of data, models or training, and nothing here loads
torch.
"""

from .errors import UserError, aligned, nearest
from .registry import Registry, load_plugins, plugin_modules
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
    "load_plugins",
    "nearest",
    "plugin_modules",
]
