"""Files to token shards on all cores: raw text or the token files of other programs, restartable, the same bytes each
time.

Read `run` (the work list, and what is finished), `pool` (worker processes), `raw` (documents to tokens), then
`imported` with `padding`, `arrays`, `columns` and `megatron` (token files of others). `duplicates` and `statistics`
stand alone.
"""

from .arrays import DumpReader
from .columns import ListReader
from .imported import TokenCorpus, TokenReader
from .megatron import MegatronReader
from .padding import PadId, stated_pad
from .pool import Emit, run_tasks
from .raw import RawCorpus
from .run import Corpus, Event, PreparationResult, prepare
from .statistics import Lengths, LengthStatistics, length_statistics, shard_lengths

__all__ = [
    "Corpus",
    "DumpReader",
    "Emit",
    "Event",
    "LengthStatistics",
    "Lengths",
    "ListReader",
    "MegatronReader",
    "PadId",
    "PreparationResult",
    "RawCorpus",
    "TokenCorpus",
    "TokenReader",
    "length_statistics",
    "prepare",
    "run_tasks",
    "shard_lengths",
    "stated_pad",
]
