"""What `state.json` states: the keys of today, and a message for each that is missing, unknown or of another type."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cistron.datasets.errors import DataOrderError
from cistron.datasets.loading import DataState
from cistron.models.config import AttentionConfig, RopeConfig
from cistron.trainer.checkpoints import Progress, RunState, SavedContract
from cistron.trainer.errors import CheckpointError

# as Cistron 0.1.0 wrote it before `RunState`, with two of its eight lanes
STATE = """
{
 "progress": {"step": 2, "tokens_seen": 950, "rows_hash": 1903147458028915, "source_tokens": {"words": 950},
              "steps_without_targets": 0},
 "guard": {
  "nonfinite": 0, "spikes": 0, "nonfinite_in_a_row": 0, "last_skipped": 0,
  "window": {"loss": [6.65794038772583, 6.095598220825195], "grad_norm": [3.9365477561950684, 3.671159267425537]}
 },
 "data": {
  "version": 2, "rows": 16, "begin": 0, "counts": [16],
  "lanes": {
   "words/0": [0, 0, 0, -1, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0], "words/1": [0, 0, 0, -1, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0]
  },
  "config": {
   "lanes": 8, "packing": "best_fit", "objective": {"name": "causal"}, "lowercase_weight": 1.0,
   "exclude_tags": false, "exclude_degenerate": false, "uppercase": false, "reverse_complement": 0.0,
   "long_documents": "split", "window_overlap": 0, "seq_len": 64, "seed": 0, "tokenizer": "byte",
   "stages": {"0": {"words": 1.0}},
   "sources": [{"name": "words", "format": "jsonl", "field": "text", "label": "", "files": "5d4af7e75d725fbf2504e31671815e0b"}]
  }
 },
 "contract": {"eos": 0, "pad": 1, "vocab": 512, "tokenizer": "byte", "bos": null, "mask": null, "unk": null},
 "model": {
  "vocab_size": 512, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "hidden_dim": 64,
  "norm_eps": 1e-05, "qk_norm": false, "tie_embeddings": false,
  "rope": {
   "theta": 10000.0, "scaling": "none", "factor": 1.0, "original_seq_len": null, "beta_fast": 32.0, "beta_slow": 1.0,
   "ramp": "index", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "short_factor": [], "long_factor": [],
   "attention_factor": null
  },
  "attention": {
   "mask": "full", "window": null, "sinks": 4, "position_map": "none", "map_window": null, "leak": 16.0, "group": 8,
   "logn": false
  }, "causal": true, "head_outputs": 0, "pool": "mean"
 },
 "config": {
  "job": {"dump_folder": "outputs/words", "description": ""},
  "model": {
   "preset": "debug", "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "hidden_dim": 64,
   "rope": {}, "attention": {"executor": "auto"}
  }, "tokenizer": {"kind": "byte"},
  "data": {
   "sources": [{"name": "words", "format": "jsonl", "paths": ["corpus/*.jsonl"], "field": "text", "weight": 1.0}],
   "stages": [], "lanes": 8, "packing": "best_fit", "layout": "packed", "pad_multiple": 128, "length_buckets": false,
   "lowercase_weight": 1.0, "exclude_tags": false, "exclude_degenerate": false, "uppercase": false,
   "normalize_weights": true, "reverse_complement": 0.0, "long_documents": "split", "window_overlap": 0,
   "num_workers": 0, "on_bad_record": "error", "on_change": "refuse", "verify": false, "cache_gb": 50.0,
   "retries": 5
  },
  "training": {
   "objective": "causal", "seq_len": 64, "local_batch_size": 4, "global_batch_size": 8, "steps": 2, "max_norm": 1.0,
   "max_nonfinite_steps": 10, "seed": 0, "dtype": "float32", "mixed_precision_param": "float32",
   "mixed_precision_reduce": "float32", "gc_freq": 50
  }, "mlm": {"mask_rate": 0.15, "rate_schedule": "constant", "mask_share": 0.8, "random_share": 0.1},
  "head": {"classes": [], "pool": "mean"},
  "optimizer": {
   "name": "AdamW", "implementation": "fused", "state_dtype": "float32", "lr": 0.01, "beta1": 0.9, "beta2": 0.95,
   "eps": 1e-08, "weight_decay": 0.1
  }, "skip_step": {"enable": true, "sigma": 6.0, "window": 128},
  "lr_scheduler": {"warmup_steps": 4, "decay_ratio": 0.2, "decay_type": "linear", "min_lr_factor": 0.0},
  "parallelism": {
   "data_parallel_replicate_degree": 1, "data_parallel_shard_degree": -1, "tensor_parallel_degree": 1,
   "context_parallel_degree": 1, "fsdp_reshard_after_forward": "default", "enable_async_tensor_parallel": false
  }, "compile": {"enable": false},
  "activation_checkpoint": {"mode": "none", "selective_ac_option": "op", "memory_budget": 0.5},
  "float8": {"enable": false, "recipe_name": "tensorwise", "filter_fqns": ["output"], "emulate": false},
  "fine_tuning": {
   "freeze": [],
   "lora": {"rank": 0, "alpha": 16.0, "targets": ["layers.*.attention.w?", "layers.*.feed_forward.w?"]}
  },
  "checkpoint": {
   "enable": true, "folder": "checkpoint", "interval": 4, "async_mode": "async", "keep_latest_k": 3,
   "keep_every_n": 0, "max_failures": 3, "load_step": -1, "initial_load_model_only": true, "last_save_in_hf": false
  }, "validation": {"enable": false, "freq": 500, "steps": -1, "sources": []},
  "eval": {
   "extrapolation": {
    "enable": false, "freq": 5000, "lengths": ["1x", "2x", "4x", "8x"], "methods": [], "score_last": 64,
    "documents": 32, "passkey": {"samples": 10, "digits": 5, "depths": [0.0, 0.25, 0.5, 0.75, 1.0]},
    "continuation": {"samples": 0, "tokens": 32, "metrics": ["BLEU", "ROUGE"]}
   }
  }, "metrics": {"log_freq": 1, "enable_tensorboard": false, "enable_wandb": false},
  "profiling": {
   "enable_profiling": false, "profile_freq": 10, "save_traces_folder": "profile_traces",
   "enable_memory_snapshot": false, "save_memory_snapshot_folder": "memory_snapshot"
  }, "comm": {"timeout_seconds": 600, "trace_buf_size": 0, "save_traces_folder": "comm_traces"}
 },
 "versions": {"cistron": "0.1.0", "torch": "2.13.0+cpu"}
}
"""
WHERE = "run/step-2/state.json"
MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda s: s["progress"].pop("tokens_seen"), "progress.tokens_seen: missing"),
    "missing table": (lambda s: s.pop("contract"), "contract: missing"),
    "misspelt": (lambda s: s["progress"].update(stepp=1), "progress.stepp: unknown key, did you mean 'step'?"),
    "mistyped": (lambda s: s["contract"].update(eos="0"), "contract.eos = '0': input should be a valid integer"),
    "no table": (lambda s: s.update(guard=3), "guard = 3: input should be an object"),
    "deep": (lambda s: s["model"]["rope"].update(thetta=1.0), "model.rope.thetta is 1.0: extra inputs are not permitted"),
    "inconsistent": (lambda s: s["model"].update(n_heads=3), "model.n_heads is 3 and model.n_kv_heads 2"),
    "negative step": (lambda s: s["progress"].update(step=-1), "progress.step = -1: input should be greater"),
    "negative tokens": (lambda s: s["progress"]["source_tokens"].update(words=-5), "progress.source_tokens.words = -5"),
    "hash of 65 bits": (lambda s: s["progress"].update(rows_hash=2**64), "progress.rows_hash = 18446744073709551616"),
    "negative count": (lambda s: s["guard"].update(spikes=-1), "guard.spikes = -1"),
    "negative id": (lambda s: s["contract"].update(eos=-1), "contract.eos = -1"),
    "of a later version": (lambda s: s["config"]["training"].update(stepps=1), "config.training.stepps: unknown key"),
}


def test_a_state_of_today_is_read_and_written_with_the_same_keys() -> None:
    state = RunState.read(STATE.encode(), WHERE)
    assert state.progress == Progress(step=2, tokens_seen=950, rows_hash=1903147458028915, source_tokens={"words": 950})
    assert state.guard is not None
    assert state.guard.window is not None
    assert state.guard.window.grad_norm == [3.9365477561950684, 3.671159267425537]
    assert state.contract == SavedContract(eos=0, pad=1, vocab=512, tokenizer="byte")
    assert (state.model.rope, state.model.attention) == (RopeConfig(), AttentionConfig())
    assert (state.config.training.seq_len, state.config.model.preset) == (64, "debug")
    assert RunState.read(state.text().encode(), WHERE) == state
    given, written = json.loads(STATE), json.loads(state.text())
    del given["config"]["optimizer"]["implementation"]  # an option that is no more
    assert {key: written[key] for key in given if key != "config"} == {key: given[key] for key in given if key != "config"}
    assert written["config"]["training"] == given["config"]["training"] | {"loss_chunk_tokens": 0}  # which came later


@pytest.mark.parametrize("case", MISTAKES)
def test_what_does_not_belong_in_a_state_is_named(case: str) -> None:
    change, expected = MISTAKES[case]
    state = json.loads(STATE)
    change(state)
    with pytest.raises(CheckpointError) as caught:
        RunState.read(json.dumps(state).encode(), WHERE)
    assert f"{WHERE}: {expected}" in str(caught.value)


def test_the_version_that_wrote_a_state_is_told_where_it_does_not_fit() -> None:
    state = json.loads(STATE)
    state["epochs"], state["versions"]["cistron"] = 3, "9.0"
    with pytest.raises(CheckpointError, match=r"epochs: unknown key[^\n]*\n  .*: Cistron '9.0' wrote it, this is "):
        RunState.read(json.dumps(state).encode(), WHERE)


@pytest.mark.parametrize("key", ["rows", "begin", "counts"])
def test_no_count_of_the_place_in_the_data_is_negative(key: str) -> None:
    state = json.loads(STATE)
    state["data"]["version"] = DataState.model_fields["version"].default
    state["data"][key] = [-1] if key == "counts" else -1
    with pytest.raises(DataOrderError, match=rf"{key}.*: Input should be greater than or equal to 0"):
        RunState.read(json.dumps(state).encode(), WHERE).data_state()


@pytest.mark.parametrize("text", [b"[" * 10**5, b'{"progress": {"step": ' + b"9" * 5000 + b"}}", b"\xff", b"[]", b""])
def test_what_is_no_state_at_all_is_named(text: bytes) -> None:
    with pytest.raises(CheckpointError, match=WHERE):
        RunState.read(text, WHERE)


def test_all_mistakes_of_a_state_are_told_at_once() -> None:
    state = json.loads(STATE)
    del state["progress"], state["versions"]
    state["model"]["dimm"] = 3
    with pytest.raises(CheckpointError) as caught:
        RunState.read(json.dumps(state).encode(), WHERE)
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["progress", "model.dimm is 3", "versions"]


def test_what_training_does_next_does_not_change_a_state() -> None:
    before = RunState.read(STATE.encode(), WHERE)
    state = RunState.of(config=before.config, model=before.model, contract=before.contract, progress=before.progress)
    before.progress.advance({"words": 5}, rows_hash=1)
    assert (state.progress.step, state.progress.source_tokens, before.progress.step) == (2, {"words": 950}, 3)
    assert "guard" not in json.loads(state.text())
