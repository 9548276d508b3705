"""What a checkpoint states of its run: `state.json`, checked as a whole when it is read.

The keys are those of `RunState`; `format` in the manifest is their version. A key that is missing, unknown or of
another type is a `CheckpointError`, so that nothing fails later and elsewhere. The learning rate is a function of the
step, and nothing draws from a global random generator: there is no more state than this and the tensors.
"""

import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, PlainSerializer, ValidationError
from pydantic_core import ErrorDetails

from ... import __version__
from ...base import json_object, load_saved_plugins, nearest, shown
from ...datasets.documents import Letters
from ...datasets.loading import DataState
from ...models.config import DecoderConfig
from ..config import JobConfig, table_at
from ..errors import CheckpointError

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Progress(BaseModel):
    """How far a job has come.

    Attributes:
        step: optimizer steps done.
        tokens_seen: tokens of them, padding left out.
        rows_hash: sum of the hashes of all rows since step 1, modulo 2^64.
        source_tokens: tokens of each source by its name.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    step: Count
    tokens_seen: Count
    rows_hash: Annotated[int, Field(ge=0, lt=2**64)]
    source_tokens: dict[str, Count]

    @classmethod
    def start(cls) -> "Progress":
        """Return the progress of a job that has taken no step."""
        return cls(step=0, tokens_seen=0, rows_hash=0, source_tokens={})

    def advance(self, tokens: Mapping[str, int], rows_hash: int) -> None:
        """Count one optimizer step.

        Args:
            tokens: of each source by its name, padding left out.
            rows_hash: of the step's rows.
        """
        self.step += 1
        self.tokens_seen += sum(tokens.values())
        self.rows_hash = (self.rows_hash + rows_hash) % 2**64
        for name, count in tokens.items():
            self.source_tokens[name] = self.source_tokens.get(name, 0) + count


class SpikeWindowState(BaseModel):
    """The window of `[skip_step]`: losses and gradient norms of the last steps, oldest first."""

    model_config = STRICT

    loss: list[float]
    grad_norm: list[float]


class GuardState(BaseModel):
    """What decides whether the next steps are taken: counts of those that were not, and the window of `[skip_step]`."""

    model_config = STRICT

    nonfinite: Count
    spikes: Count
    nonfinite_in_a_row: Count
    last_skipped: Count
    window: SpikeWindowState | None = None


class SavedContract(BaseModel):
    """The eos contract of the weights' training: special ids, embedding rows, fingerprint of the tokenizer."""

    model_config = STRICT

    eos: Count
    pad: Count
    vocab: Count
    tokenizer: str | None
    bos: Count | None = None
    mask: Count | None = None
    unk: Count | None = None


def _of_this_version(config: Any) -> Any:
    """Return the tables of a saved configuration as this version has them; the plug-ins that they name must be."""
    if not isinstance(config, dict):
        return config
    tables = {name: dict(table) if isinstance(table, dict) else table for name, table in config.items()}
    if isinstance(tables.get("model"), dict) and isinstance(tables["model"].get("attention"), str):
        tables["model"]["attention"] = {"executor": tables["model"]["attention"]}
    if isinstance(tables.get("optimizer"), dict):
        tables["optimizer"].pop("implementation", None)  # of AdamW, all with the same results
    if isinstance(tables.get("job"), dict):
        plugins = tables["job"].get("plugins")
        load_saved_plugins([name for name in plugins if isinstance(name, str)] if isinstance(plugins, list) else [])
    return tables


class RunState(BaseModel):
    """Everything that `state.json` holds.

    Attributes:
        progress: steps and tokens so far.
        guard: of the steps that are not taken; None where the checkpoint holds weights alone.
        data: where the data continues, see `data_state`; None where it begins anew.
        contract: the eos contract.
        model: shape of the decoder.
        config: the resolved job.
        letters: of each source, by its name, what was done with letters, where its shards may differ; None: unknown.
        versions: of Cistron and torch when it was saved, for people.
    """

    model_config = STRICT

    progress: Progress
    guard: GuardState | None = None
    data: dict[str, JsonValue] | None
    contract: SavedContract
    model: DecoderConfig
    config: Annotated[JobConfig, BeforeValidator(_of_this_version), PlainSerializer(JobConfig.to_dict)]
    letters: dict[str, list[Letters]] | None = None
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        *,
        config: JobConfig,
        model: DecoderConfig,
        contract: SavedContract,
        progress: Progress | None = None,
        guard: GuardState | None = None,
        data: DataState | None = None,
        letters: Mapping[str, Collection[Letters]] | None = None,
    ) -> "RunState":
        """Return the state of a run as it is now: what training changes afterwards does not change it.

        Args:
            config: the resolved job.
            model: shape of the decoder.
            contract: the eos contract.
            progress: steps and tokens so far; None: none.
            guard: what `StepGuard.state` returns; None: the checkpoint holds weights alone.
            data: state of the loader, joined over all ranks; None: the data begins anew.
            letters: what was done with the letters of each source, by its name; None: unknown.
        """
        versions = {"cistron": __version__, "torch": torch.__version__}
        progress = progress.model_copy(deep=True) if progress else Progress.start()
        return cls(
            progress=progress,
            guard=guard,
            data=data.model_dump(mode="json") if data else None,
            contract=contract,
            model=model,
            config=config,
            letters=None if letters is None else {name: sorted(made, key=str) for name, made in letters.items()},
            versions=versions,
        )

    @classmethod
    def read(cls, text: bytes, where: str) -> "RunState":
        """Return what a `state.json` states.

        Args:
            text: of the file.
            where: its path, for messages.

        Raises:
            CheckpointError: it is no JSON, or a key is missing, unknown, of another type or beyond its limits: each is
                named, and the version that wrote it if it is another.
        """
        content = json_object(text, where, CheckpointError, finite=False)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = [f"{where}: {_explain(problem)}" for problem in error.errors()]
            versions = content.get("versions")
            writer = versions.get("cistron") if isinstance(versions, dict) else None
            if isinstance(writer, str) and writer != __version__:
                wrong.append(f"{where}: Cistron {shown(writer)} wrote it, this is {__version__!r}")
            raise CheckpointError("\n  ".join(wrong)) from None

    def data_state(self) -> DataState:
        """Return where the data continues.

        Raises:
            DataOrderError: it is of another version, which `data.on_change = "restart"` accepts: the weights are good.
        """
        return DataState.read(self.data)

    def trained_letters(self) -> tuple[Letters, list[str]]:
        """Return what training did with letters, and what is open about that, in words for people.

        Where its sources differ in a key, the job's own value is returned.
        """
        data = self.config.data
        if not data.sources:
            return data.letters, ["no job says what else its training did with them"]
        if not self.letters:
            shards = any(source.format == "tokens" for source in data.sources)
            return data.letters, ["the checkpoint does not say how its token shards were prepared"] if shards else []
        found = {key: {getattr(made, key) for of in self.letters.values() for made in of} for key in Letters.model_fields}
        agreed = {key: next(iter(values)) for key, values in found.items() if len(values) == 1}
        differing = {key: sorted(str(value).lower() for value in values) for key, values in found.items() if len(values) > 1}
        notes = [f"its sources had {key} = {' and '.join(values)}" for key, values in differing.items()]
        return data.letters.replace(**agreed), notes

    def text(self) -> str:
        """Return the text of `state.json`."""
        state = self.model_dump()
        del state["guard"]
        if self.guard:
            state["guard"] = self.guard.model_dump(exclude_none=True)
        return json.dumps(state, indent=1)


def _explain(problem: ErrorDetails) -> str:
    """Return one pydantic error as `key: what was found and what would be right`."""
    path = problem["loc"]
    key = ".".join(map(str, path)) or "the file"
    version = "; the checkpoint is of another version" if path[:1] == ("config",) else ""
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(str(path[-1]), table_at(path[:-1], RunState).model_fields)}{version}"
    if problem["type"] == "missing":
        return f"{key}: missing{version}"
    if problem["type"] == "value_error":
        text = str(problem["ctx"]["error"])
        return text if text.startswith(f"{key}.") else f"{key}: {text}"
    return f"{key} = {problem['input']!r:.60}: {problem['msg'][0].lower()}{problem['msg'][1:]}{version}"
