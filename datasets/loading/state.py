"""The state of the data: a few integers for each lane, and the settings under which they mean something.

As JSON it is

    {"version": 4, "rows": global row at which the next batch begins, "begin": row at which this order of data began,
     "counts": rows of each source since then, "lanes": {"<source>/<lane>": LaneState}, "config": what determines the
     order}

A lane that is not listed has not been read. The state of a rank lists the lanes of that rank. Merged over all ranks, it
is the state of the run, from which any number of ranks and workers can continue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from ..errors import DataOrderError
from ..files import DataFile, Listing, changes
from ..lanes import LaneState
from ..shards import Record

# The files of each source.
Inventory = Mapping[str, Listing]
RowCount = Annotated[int, Field(ge=0)]


class DataState(Record):
    """Where the data of a rank, or of a run, stands. Immutable; `model_dump(mode="json")` gives the JSON.

    Attributes:
        version: Of this format.
        rows: Global row at which the next batch begins.
        begin: Global row at which this order of the data began.
        counts: Rows drawn from each source since `begin`.
        lanes: State of each lane that was read, by its name.
        config: The settings that determine the order of rows, and a fingerprint of the files.
    """

    version: Literal[4] = 4
    rows: RowCount
    begin: RowCount
    counts: list[RowCount]
    lanes: dict[str, LaneState]
    config: dict[str, JsonValue]

    @classmethod
    def read(cls, saved: Any) -> "DataState":
        """Return the state that `saved`, plain JSON, describes.

        Raises:
            DataOrderError: A key is missing, unknown or of another type; names each one.
        """
        try:
            return cls.model_validate(saved)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise DataOrderError(f"the checkpoint's data state cannot be read by this program: {wrong}") from None

    def left_out(self) -> str:
        """Return what the run has left out so far, as text for people; empty if nothing."""
        counts = {
            "bad record(s)": self.total("skipped"),
            "document(s) without a token": self.total("dropped"),
            "document(s) truncated": self.total("truncated"),
            "letter(s) mapped or unknown token(s)": self.total("mapped"),
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def total(self, counter: str) -> int:
        """Return the sum of a counter of `LaneState` over the lanes, up to the blocks that they stand in."""
        return sum(getattr(lane, counter) for lane in self.lanes.values())


@dataclass(frozen=True, kw_only=True)
class DataShard:
    """Which part of the data a rank has, and where it continues. The default is all of the data, from the first row on.

    Attributes:
        dp_rank: Data-parallel rank.
        dp_degree: Number of data-parallel ranks.
        state: Of a loader with the same settings, merged over its ranks; None: begin at `row`.
        inventory: What `Loader.inventory` returned when the state was saved: files that have moved are read in the
            same order, and a refusal can name the file that changed.
        row: Global row to begin at, where there is no state.
    """

    dp_rank: int = 0
    dp_degree: int = 1
    state: DataState | None = None
    inventory: Inventory | None = None
    row: int = 0


ALL_DATA = DataShard()


def check_state(
    state: DataState, config: dict[str, JsonValue], files: Mapping[str, Sequence[DataFile]], inventory: Inventory | None
) -> None:
    """Refuse a state under which other rows would follow than in the run that wrote it.

    Stages that begin at or after the state's row may differ: no row so far has depended on them.

    Args:
        state: As saved.
        config: What determines the order of rows now.
        files: Of each source, now.
        inventory: Of each source when the state was saved, if that was kept: lets the message name a changed file.

    Raises:
        DataOrderError: Listing each key that differs, the checkpoint's value and the present one.
    """
    saved, present = (
        _flatten("data", {**side, "stages": _begun(side.get("stages"), state.rows)}) for side in (state.config, config)
    )
    differences = []
    for key in sorted(saved | present):
        if saved.get(key) != present.get(key):
            name = key.removeprefix("data.sources.").removesuffix(".files")
            if key.endswith(".files") and inventory and name in inventory and name in files:
                differences.append(f"data.sources.{name}: " + "; ".join(changes(inventory[name], files[name])))
            else:
                differences.append(f"{key}: checkpoint {saved.get(key, 'none')!r}, now {present.get(key, 'none')!r}")
    if differences:
        raise DataOrderError("the checkpoint's data order belongs to other settings; " + "; ".join(differences))


def merge_states(states: Sequence[DataState]) -> DataState:
    """Return the state of a run, from which any number of ranks and workers can resume.

    Args:
        states: One per data-parallel rank, each after the same number of batches.
    """
    first = states[0]
    for state in states[1:]:
        assert state.model_copy(update={"lanes": first.lanes}) == first, (
            f"ranks stand at different rows: {[state.rows for state in states]}"
        )
    return first.model_copy(update={"lanes": {name: at for state in states for name, at in state.lanes.items()}})


def _begun(stages: JsonValue, rows: int) -> JsonValue:
    """Keep the stages that begin before row `rows`, and the first in any case."""
    if not isinstance(stages, dict):
        return stages
    return {row: weights for row, weights in stages.items() if not row.isdecimal() or int(row) < rows or int(row) == 0}


def _flatten(prefix: str, value: JsonValue) -> dict[str, JsonValue]:
    """Name the leaves of nested settings by their path; tables of a list by their name."""
    if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
        value = {str(item["name"]): {"place": place, **item} for place, item in enumerate(value) if isinstance(item, dict)}
    if isinstance(value, dict):
        return {name: leaf for key, item in value.items() for name, leaf in _flatten(f"{prefix}.{key}", item).items()}
    return {prefix: value}
