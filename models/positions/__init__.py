"""Where tokens stand, as attention sees it: rotary tables, their scalings, windows and position maps.

Read `rope.py` first (frequencies, and rotation by them), then `maps.py` (which positions a query and a key are rotated
to, and which pairs a window or map leaves).
"""

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
