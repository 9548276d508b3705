"""`cistron doctor`: is this machine, this cluster, this installation fit to train, and how fast is it?

Read `report` (a verdict per line) and `examination` (what a part is given), then `command`: the parts in their order.
`launch` starts each part on every rank in a process of its own with a time limit. The other files are the parts.
"""

from .command import main

__all__ = ["main"]
