"""models/positions."""

from .maps import ALL_DISTANCES, DistanceRange, RotaryTables, keys_seen, reaches, rotary_tables
from .rope import ntk_theta, rope_table, rotate

__all__ = [
    "ALL_DISTANCES",
    "DistanceRange",
    "RotaryTables",
    "keys_seen",
    "ntk_theta",
    "reaches",
    "rope_table",
    "rotary_tables",
    "rotate",
]
