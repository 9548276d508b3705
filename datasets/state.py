"""A loader's state: a few integers per lane and what they mean something to. Plain JSON.

    {"version": 1, "rows": global rows consumed, "mixer": rows per source in whole rounds,
     "lanes": {"<source>/<lane>": LaneState}, "config": all that determines the order of rows}

A lane that is not listed has not been read. The state of a rank lists the rank's own lanes; merged over ranks it is the
state of the run, from which any number of ranks and workers goes on.
"""

from collections.abc import Sequence
from typing import Any

from .errors import DataConfigError
from .lane import LaneState

VERSION = 1


def initial_state(config: dict[str, Any], sources: int) -> dict[str, Any]:
    """Return the state of a run that has not begun."""
    return {"version": VERSION, "rows": 0, "mixer": [0] * sources, "lanes": {}, "config": config}


def check_state(state: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse a state under which other rows would follow than in the run that wrote it.

    Raises:
        DataConfigError: Listing each key that differs, the checkpoint's value and the present one.
    """
    if state["version"] != VERSION:
        raise DataConfigError(f"the checkpoint's data state has version {state['version']}, this program {VERSION}")
    saved, present = _flatten("data", state["config"]), _flatten("data", config)
    differences = [
        f"{key}: checkpoint {saved.get(key, 'none')!r}, now {present.get(key, 'none')!r}"
        for key in sorted(saved | present)
        if saved.get(key) != present.get(key)
    ]
    if differences:
        raise DataConfigError("the checkpoint's data order belongs to other settings; " + "; ".join(differences))


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the states of all ranks into one that any number of ranks and workers resumes from.

    Args:
        states: One per data-parallel rank, each after the same number of batches.
    """
    first = states[0]
    for state in states[1:]:
        assert all(state[key] == first[key] for key in ("version", "rows", "mixer", "config")), (
            f"ranks stand at different rows: {[state['rows'] for state in states]}"
        )
    return {**first, "lanes": {name: at for state in states for name, at in state["lanes"].items()}}


def documents_dropped(state: dict[str, Any]) -> int:
    """Return how many documents without tokens the lanes of `state` have met, up to the blocks that they stand in."""
    return sum(LaneState(*lane).dropped for lane in state["lanes"].values())


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    """Name the leaves of nested settings by their path; items of a list by their name."""
    if isinstance(value, list):
        value = {item["name"]: {"place": place, **item} for place, item in enumerate(value)}
    if isinstance(value, dict):
        return {name: leaf for key, item in value.items() for name, leaf in _flatten(f"{prefix}.{key}", item).items()}
    return {prefix: value}
