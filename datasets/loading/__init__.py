"""Files to batches: opens the sources of a job, shares their lanes among ranks and workers, keeps the data's state.

Read `sources` (which files, in which lanes), `transport` (rows from workers), `loader` (endless batches, resumable),
then `single_pass` (every document once, for validation), `state` (what a checkpoint keeps of the data) and
`host_memory` (what all of it takes).
"""

from .batch import Batch, RowSettings
from .host_memory import LoaderMemory, loader_memory
from .loader import Loader
from .single_pass import SinglePass
from .sources import Source
from .state import ALL_DATA, DataShard, DataState, Exchange, Inventory, RanksLeft, merge_states

__all__ = [
    "ALL_DATA",
    "Batch",
    "DataShard",
    "DataState",
    "Exchange",
    "Inventory",
    "Loader",
    "LoaderMemory",
    "RanksLeft",
    "RowSettings",
    "SinglePass",
    "Source",
    "loader_memory",
    "merge_states",
]
