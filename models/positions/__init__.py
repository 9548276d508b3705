"""models/positions."""

from .maps import EVERYTHING, Reach, Rotations, keys_seen, reaches, rotations
from .rope import ntk_theta, rope_table, rotate

__all__ = ["EVERYTHING", "Reach", "Rotations", "keys_seen", "ntk_theta", "reaches", "rope_table", "rotate", "rotations"]
