"""One thread per process; markers by what a test calls; the longest files first.

Two test workers and their ranks share two cores, so that every process takes one thread, pytest's own included. A
worker takes whole files (`--dist loadfile`) in the order given here, so that none is left alone with a long one at the
end.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of compilers imports torch once more, 3 s, in every process

import gc
import importlib
import signal
from collections.abc import Iterator
from types import CodeType, FunctionType

import pytest
from hypothesis import HealthCheck, settings

# A machine that stands still for a while is no fault of what is tested.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Names that a test, its fixtures or helpers of theirs mention, and what that makes of the test.
MARKS = {
    "ranks": {"run_on_ranks", "start_on_ranks", "Command", "subprocess"},
    "compiled": {"graphs_alone", "CompileCounter", "compile"},
    "slow": {"train_here", "Trainer", "transformers"},
}
NOT_FOLLOWED = {"refusal"}  # ends before its first step
# By their time: the first takes three minutes, the last half of one.
LONGEST = [
    "processes/test_signals.py",
    "checkpoints/test_resume.py",
    "parallel/test_layouts.py",
    "estimates/test_memory.py",
    "checkpoints/test_checkpoints.py",
    "drills/test_two_hosts.py",
    "loading/test_same_rows.py",
    "attention/test_documents.py",
    "attention/test_masks.py",
    "build/test_fine_tuning.py",
    "config/test_refusals.py",
    "tests/test_extending.py",
    "start/test_mixture.py",
    "benchmarks/test_gpu_drill.py",
    "extrapolation/test_extrapolation.py",
    "tools/test_prepare.py",
    "start/test_labels.py",
    "models/test_context.py",
    "tools/test_tools.py",
    "tools/test_doctor.py",
    "tests/test_configs.py",
    "trainer/test_validation.py",
    "parallel/test_communication.py",
    "scripts/test_sbatch.py",
]

# Not in the fast subset either: several seconds each of corpora, refusals at start, or hypothesis.
SLOW = [
    "datasets/test_synthetic.py",
    "drills/test_fuzz_drill.py",
    "documents/test_treatment.py",
    "files/test_remote.py",
    "huggingface/test_huggingface.py",
    "lanes/test_lane.py",
    "lanes/test_mixer.py",
    "lanes/test_shard_documents.py",
    "loading/test_loader.py",
    "loading/test_same_rows.py",
    "prepare/test_imported.py",
    "prepare/test_raw.py",
    "readers/test_formats.py",
    "readers/test_fuzz.py",
    "readers/test_labels.py",
    "rows/test_packing.py",
    "tokenizers/test_tiktoken_backend.py",
    "attention/test_masks.py",
    "positions/test_maps.py",
    "models/test_context.py",
    "parallel/test_activation_checkpoint.py",
    "config/test_mistakes.py",
    "config/test_refusals.py",
    "extrapolation/test_context_extension.py",
    "inference/test_inference.py",
    "tools/test_extrapolate.py",
    "tools/test_prepare.py",
    "tools/test_tools.py",
    "tools/test_use.py",
    "tests/test_configs.py",
    "tests/test_front_door.py",
    "tests/test_imports.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they call, and put the longest files first."""
    importlib.import_module("cistron.tests.helpers.ranks")  # after which data workers are forks

    for item in items:
        assert isinstance(item, pytest.Function)
        fixtures = [fixture.func for found in item._fixtureinfo.name2fixturedefs.values() for fixture in found]
        named = set().union(*(names_in(function) for function in [item.function, *fixtures]))
        for mark, names in MARKS.items():
            if named & names:
                item.add_marker(mark)
        if "/".join(item.path.parts[-2:]) in SLOW:
            item.add_marker("slow")
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(places)))


def pytest_collection_finish() -> None:
    """Collect no garbage among what the imports left: 0.25 s of every refusal and run, which end in a collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Undo what a test does to signals here: one that is ignored would reach no command that a later test starts."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


_known: dict[FunctionType, set[str]] = {}


def names_in(function: object) -> set[str]:
    """Global names and attributes that a function of the tests mentions, with those of the functions that it calls."""
    if not isinstance(function, FunctionType) or "tests" not in function.__module__.split("."):
        return set()
    if function not in _known:
        _known[function] = found = set(mentioned(function.__code__))  # already there where functions call each other
        if "re" in found:
            found.discard("compile")  # of a pattern
        for name in found - NOT_FOLLOWED:
            called = function.__globals__.get(name)
            if str(getattr(called, "__module__", None)).startswith("transformers"):
                found.add("transformers")
            for inner in vars(called).values() if isinstance(called, type) else [called]:
                found |= names_in(inner)
    return _known[function]


def mentioned(code: CodeType) -> Iterator[str]:
    """Names that a code object reads, those of its inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from mentioned(constant)
