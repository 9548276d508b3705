"""The table `[data]`: which documents are read, how rows are made of them, and how the sources are mixed.

Its keys about remote files are those of `FileStoreConfig`, its keys about documents those of `DocumentConfig`. What
else decides rows (`seq_len`, objective, batch size) is `loading.RowSettings`.
"""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import override

from ..base import STEPS, Table, Tokens, Weight, changed
from .documents import DocumentConfig
from .files import FileStoreConfig
from .readers import SourceConfig


class Stage(Table):
    """Other weights from a step on."""

    step: Annotated[int, Field(ge=2, le=STEPS)]
    """First step whose rows are drawn by these weights."""
    weights: dict[str, Weight]
    """The weight of each source that is used from then on, as { name = weight, ... }; a source left out has none."""


class DataConfig(FileStoreConfig, DocumentConfig):
    """From files to packed rows."""

    sources: list[SourceConfig] = Field(default_factory=list)
    """The [[data.sources]] tables."""
    stages: list[Stage] = Field(default_factory=list)
    """The [[data.stages]] tables: weights that replace those of the sources, in ascending order of steps."""
    lanes: Annotated[int, Field(gt=0, le=2**16)] | None = None
    """Independent row streams; a multiple of data-parallel ranks x workers. The lane of row i depends on i alone.
    Unset: chosen, up to 16 or one for each rank and worker, fewer of a small source; a resume keeps the number."""
    packing: Literal["best_fit", "concat"] = "best_fit"
    """best_fit: whole documents, least padding. concat: classic concatenate-and-chunk."""
    layout: Literal["packed", "padded"] = "packed"
    """packed: many documents in a row. padded: one, in rows as long as the longest of the micro-batch needs."""
    pad_multiple: Tokens = 128
    """padded: rows are a multiple of this long, or training.seq_len."""
    length_buckets: bool = False
    """padded: assign a step's rows to its micro-batches by length, which takes less padding; its rows stay the same."""
    normalize_weights: bool = True
    """Divide a step's loss by the sum of its targets' weights; false: by the number of targets that have one."""
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Loader processes per rank; 0 reads ahead in a thread. Any value gives the same rows."""
    on_bad_record: Literal["error", "skip"] = "error"
    """error: a record that cannot be used ends the run. skip: it is left out, logged and counted."""
    on_change: Literal["refuse", "restart"] = "refuse"
    """If a resume finds other data or settings than the checkpoint's. restart: keep weights, begin the data anew."""
    verify: bool = False
    """Read token shards whole before the first step, to compare checksums, eos counts and largest ids."""

    @property
    def policy(self) -> str:
        """How documents become rows: one of `rows.POLICIES`."""
        return "padded" if self.layout == "padded" else self.packing

    @property
    def units(self) -> bool:
        """Whether lanes may share a document: no part of it hangs on those before it, and each is rows of its own."""
        tags = self.exclude_tags or self.exclude_degenerate
        return self.long_documents == "split" and self.policy != "concat" and not (self.whole or tags)

    def phases(self) -> list[tuple[int, list[float]]]:
        """Return first step and weights of all sources, for each part of the run that has its own weights."""
        own = [source.weight for source in self.sources]
        return [(1, own), *((s.step, [s.weights.get(source.name, 0.0) for source in self.sources]) for s in self.stages)]

    @override
    def complaints(self) -> list[str]:
        names = [source.name for source in self.sources]
        wrong = super().complaints()
        wrong += [f"data.sources: names must differ, found {names}"] if len(set(names)) < len(names) else []
        if names and not any(source.weight for source in self.sources):
            wrong.append("data.sources.weight: all are 0, so that there is nothing to begin with; give one more than 0")
        used = {name for stage in self.stages for name, weight in stage.weights.items() if weight}
        wrong += [
            f"data.sources.{index}.weight = 0.0: no stage gives {source.name!r} another one, so it is never read; remove it"
            for index, source in enumerate(self.sources)
            if not source.weight and source.name not in used and any(s.weight for s in self.sources)
        ]
        if self.layout == "padded" and self.packing == "concat":
            wrong.append('data.packing = "concat": a padded row holds one document (data.layout); leave packing out')
        for key in ("pad_multiple", "length_buckets"):
            if self.layout == "packed" and changed(self, key):
                found = str(getattr(self, key)).lower()
                wrong.append(f'data.{key} = {found}: is of data.layout = "padded", and the layout is "packed"')
        before = 1
        for index, stage in enumerate(self.stages):
            key = f"data.stages.{index}"
            if stage.step <= before:
                wrong.append(f"{key}.step = {stage.step}: must come after step {before} of the stage before it")
            before = stage.step
            unknown = [name for name in stage.weights if name not in names]
            wrong += [f"{key}.weights.{name}: no source of this name; there are: {', '.join(names)}" for name in unknown]
            if not any(stage.weights.values()):
                wrong.append(f"{key}.weights: name at least one source with a weight above 0")
        return wrong
