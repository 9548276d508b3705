"""A loader's state: a few integers per lane and what they mean something to. Plain JSON.

    {"version": 2, "rows": global row at which the next batch begins, "begin": row at which this order of data began,
     "counts": rows of each source since then, "lanes": {"<source>/<lane>": LaneState}, "config": what determines the order}

A lane that is not listed has not been read. The state of a rank lists the rank's own lanes; merged over ranks it is the
state of the run, from which any number of ranks and workers goes on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataOrderError
from ..files import DataFile, changes
from ..lanes import LaneState

VERSION = 2
Inventory = Mapping[str, Sequence[Sequence[str | int]]]


def initial_state(config: dict[str, Any], sources: int, row: int) -> dict[str, Any]:
    """Return the state of data that begins at global row `row`."""
    return {"version": VERSION, "rows": row, "begin": row, "counts": [0] * sources, "lanes": {}, "config": config}


def check_state(
    state: dict[str, Any], config: dict[str, Any], files: Mapping[str, Sequence[DataFile]], inventory: Inventory | None
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
    if state.get("version") != VERSION:
        raise DataOrderError(f"the checkpoint's data state has version {state.get('version')}, this program {VERSION}")
    saved, present = ({**side, "stages": _begun(side["stages"], state["rows"])} for side in (state["config"], config))
    saved, present = _flatten("data", saved), _flatten("data", present)
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


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the states of all ranks into one that any number of ranks and workers resumes from.

    Args:
        states: One per data-parallel rank, each after the same number of batches.
    """
    first = states[0]
    for state in states[1:]:
        assert all(state[key] == first[key] for key in first if key != "lanes"), (
            f"ranks stand at different rows: {[state['rows'] for state in states]}"
        )
    return {**first, "lanes": {name: at for state in states for name, at in state["lanes"].items()}}


def left_out(state: dict[str, Any]) -> str:
    """What a run has left out so far, for people; empty if nothing."""
    lanes = [LaneState(*lane) for lane in state["lanes"].values()]
    counts = {
        "bad record(s)": records_skipped(state),
        "document(s) without a token": documents_dropped(state),
        "document(s) truncated": sum(lane.truncated for lane in lanes),
        "letter(s) mapped": sum(lane.mapped for lane in lanes),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def documents_dropped(state: dict[str, Any]) -> int:
    """Return how many documents without tokens the lanes of `state` have met, up to the blocks that they stand in."""
    return sum(LaneState(*lane).dropped for lane in state["lanes"].values())


def records_skipped(state: dict[str, Any]) -> int:
    """Return how many bad records the lanes of `state` have passed over, up to the blocks that they stand in."""
    return sum(LaneState(*lane).skipped for lane in state["lanes"].values())


def _begun(stages: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Keep the stages that begin before row `rows`, and the first in any case."""
    return {row: weights for row, weights in stages.items() if int(row) < rows or int(row) == 0}


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    """Name the leaves of nested settings by their path; items of a list by their name."""
    if isinstance(value, list):
        value = {item["name"]: {"place": place, **item} for place, item in enumerate(value)}
    if isinstance(value, dict):
        return {name: leaf for key, item in value.items() for name, leaf in _flatten(f"{prefix}.{key}", item).items()}
    return {prefix: value}
