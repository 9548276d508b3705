"""Frozen parts and adapters: what is trained and what is not, in any layout, and what becomes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
from cistron.models.attention import DocumentMask
from cistron.models.init import init_weights
from cistron.tests.helpers.jobs import Case, column, graphs_alone, metrics, refusal, train_here, write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer import checkpoints as checkpoint
from cistron.trainer.build import make_model
from cistron.trainer.checkpoints import Folder, WholeTensors
from cistron.trainer.checkpoints.tensors import read_index
from cistron.trainer.config import load_config
from cistron.trainer.huggingface import export
from cistron.trainer.huggingface.folder import stored_names
from cistron.trainer.processes import Layout, StopRequest, join
from cistron.trainer.start import verify
from cistron.trainer.train import Trainer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

STEPS = 4
TIED = ["--model.qk_norm", "true", "--model.tie_embeddings", "true"]
# rank 1: on two ranks one of them has none of A
LORA = ["--fine_tuning.lora.rank", "1", "--fine_tuning.lora.alpha", "2", "--checkpoint.initial_load_path", "{folder}/base"]
FREEZES = {
    "lora": LORA,
    "blocks": ["--fine_tuning.freeze", '["layers.*"]', *TIED],
    "tables": ["--fine_tuning.freeze", '["output", "layers.0", "*.w?.weight"]', *TIED],
}
FULL_AC = "--activation_checkpoint.mode full"
BY_OPERATOR = "--activation_checkpoint.mode selective"


BASE = LlamaConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=1,
    initializer_range=0.2,
)


def options(case: Case, config: Path) -> list[str]:
    """The command line of a case whose kind is one of `FREEZES`, with a folder of its own."""
    own = ["--config", str(config), "--job.dump_folder", str(config.parent / case.name)]
    return [*own, *(word.format(folder=config.parent) for word in [*FREEZES[case.kind], *case.overrides])]


MOST = Case("lora", tp=2, more=FULL_AC + " --compile.enable true")
CASES = [
    Case("lora", shard=2),
    Case("lora", replicate=2, more=BY_OPERATOR),
    MOST,
    Case("blocks", shard=2, more=FULL_AC),
    Case("blocks", tp=2),
    Case("tables", cp=2),
]
ALONE = [Case(what) for what in FREEZES]


def run_cases(config_path: str, cases: list[Case]) -> None:
    """Run the job in each layout, in processes that have joined."""
    for case in cases:
        config, _ = load_config(options(case, Path(config_path)))
        trainer = Trainer(config, join(config), StopRequest())
        trainer.prompt = []
        trained = names(make_model(config, trainer.decoder_config), lambda p: p.requires_grad)
        assert names(trainer.model, trainer.optimizer.state.__contains__) == trained
        # just before gradients are cleared: every trained parameter has one, and no frozen one
        seen: list[list[str]] = []
        looked = Mock(side_effect=partial(look_at_gradients, trainer, seen))
        with patch.object(trainer.optimizer, "zero_grad", looked), graphs_alone():
            trainer.train()
        assert seen == [trained] * STEPS
        trainer.close()
        torch.compiler.reset()


def look_at_gradients(trainer: Trainer, seen: list[list[str]]) -> None:
    """Note which parameters have one, and clear them."""
    seen.append(names(trainer.model, lambda p: p.grad is not None))
    trainer.model.zero_grad()


def names(model: nn.Module, which: Callable[[nn.Parameter], bool]) -> list[str]:
    """Of the parameters that `which` picks, without what checkpointing inserts."""
    return [name.replace("_checkpoint_wrapped_module.", "") for name, p in model.named_parameters() if which(p)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that has run in all layouts."""
    config = write_job(tmp_path_factory.mktemp("fine_tuning"), steps=STEPS)
    config.write_text(config.read_text().replace("interval = 4", "interval = 2"))
    torch.manual_seed(0)
    LlamaForCausalLM(BASE).save_pretrained(config.parent / "base", max_shard_size="50KB")
    for processes in (1, 2):
        run_on_ranks(run_cases, processes, str(config), [case for case in ALONE + CASES if case.processes == processes])
    return config


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_layout_takes_the_steps_of_one_process(job: Path, case: Case) -> None:
    one, other = metrics(job, Case(case.kind).name), metrics(job, case.name)
    assert column(other, "rows_hash") == column(one, "rows_hash")
    assert column(other, "loss") == pytest.approx(column(one, "loss"), rel=1e-5)
    assert column(other, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=1e-4)


def beginning(job: Path, case: Case) -> dict[str, Tensor]:
    """The parameters of the model that a case starts from, by our names."""
    config, _ = load_config(options(case, job))
    _, decoder = verify(config, Layout.resolve(config))
    if case.kind == "lora":
        theirs = LlamaForCausalLM.from_pretrained(job.parent / "base").state_dict()
        return {ours: theirs[name] for ours, name in stored_names(decoder).items()}
    model = make_model(config, decoder)
    init_weights(model, config.training.seed)
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("case", [*ALONE, MOST, Case("blocks", tp=2)], ids=lambda case: case.name)
def test_what_is_frozen_stays_bit_for_bit_and_has_no_state(job: Path, case: Case) -> None:
    folder = job.parent / case.name / "checkpoint" / f"step-{STEPS}"
    tensors, before = WholeTensors(folder), beginning(job, case)
    moved = {name for name in tensors.names() if name not in before or not torch.equal(tensors.read(name), before[name])}
    config, _ = load_config(options(case, job))
    _, decoder = verify(config, Layout.resolve(config))
    model = make_model(config, decoder)
    assert set(tensors.names()) == {name for name, _ in model.named_parameters()}
    assert moved == set(names(model, lambda p: p.requires_grad))
    state = {name.removeprefix("optimizer.state.") for name in read_index(Folder(folder)) if name.startswith("optimizer.")}
    assert state == {f"{name}.{kind}" for name in moved for kind in ("step", "exp_avg", "exp_avg_sq")}


def test_a_run_with_adapters_resumes_bit_for_bit_and_only_with_the_same(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Case("lora")
    shutil.copytree(job.parent / alone.name, tmp_path / "run")
    resume = [*options(alone, job)[2:], "--job.dump_folder", str(tmp_path / "run"), "--checkpoint.load_step", "2"]
    message = refusal(capsys, job, *resume, "--fine_tuning.lora.alpha", "4")
    assert "was trained with another [fine_tuning]" in message
    assert "fine_tuning.lora.alpha | 2.0        | 4.0" in message
    train_here(job, *resume)
    assert "resumed from" in capsys.readouterr().out
    again = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert column(again, "loss") == column(metrics(job, alone.name), "loss")
    one, other = (WholeTensors(folder / "checkpoint" / "step-4") for folder in (job.parent / alone.name, tmp_path / "run"))
    assert all(torch.equal(one.read(name), other.read(name)) for name in one.names())


@pytest.mark.parametrize("case", [MOST, Case("lora")], ids=["tp 2, compiled", "alone"])
def test_an_export_has_the_adapters_in_its_weights(
    job: Path, tmp_path: Path, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checkpoint.read(job.parent / case.name / "checkpoint" / f"step-{STEPS}")
    model = make_model(found.state.config, found.state.model)
    checkpoint.load(found, found.reader(), model, optimizer=None)
    tokens = torch.randint(2, 512, (2, 40), generator=torch.Generator().manual_seed(0))
    ours = forward(model, tokens)
    export(found, tmp_path / "hf", tokenizer=found.state.config.tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(ours, theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    before = AutoModelForCausalLM.from_pretrained(job.parent / "base")
    assert (before(tokens).logits - ours).abs().max() > 0.01, "training has changed something"

    import_module("cistron.tools.generate").main([str(found.path), "--prompt", "pack", "--max-new-tokens", "2"])
    assert capsys.readouterr().out.startswith("pack")
    message = refusal(capsys, job, "--checkpoint.initial_load_path", str(found.path))
    assert "has other adapters" in message
    assert "cistron export merges its adapters" in message
    begin = ("--checkpoint.initial_load_path", str(tmp_path / "hf"), "--model.rope.original_seq_len", "8")
    train_here(job, "--job.dump_folder", str(tmp_path), *begin)
    said = capsys.readouterr().out
    assert f"weights from {tmp_path}/hf, a Hugging Face folder" in said
    assert f"its own rows had {found.state.config.training.seq_len} tokens (max_position_embeddings)" in said


def test_a_folder_whose_eos_is_another_is_refused_with_the_table(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(job.parent / "base", tmp_path / "other")
    for file in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / "other" / file).read_text())
        (tmp_path / "other" / file).write_text(json.dumps(content | {"eos_token_id": 5}))
    message = refusal(capsys, job, "--checkpoint.initial_load_path", str(tmp_path / "other"))
    assert "tokenizer says eos is 0, checkpoint says 5" in message
    assert f"checkpoint     | {tmp_path}/other/config.json" in message


def forward(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits of one document to a row."""
    ids = torch.zeros(tokens.shape, dtype=torch.int32)
    mask = DocumentMask(eos_id=0, pad_id=1, causal=True, executor="sdpa").build(ids)
    logits: Tensor = model(tokens, torch.arange(tokens.shape[1], dtype=torch.int32).expand(tokens.shape), mask)
    return logits


def test_a_hand_written_loop_trains_the_adapters_of_a_plain_module(tmp_path: Path) -> None:
    config, _ = load_config(["--config", str(write_job(tmp_path)), "--fine_tuning.lora.rank", "4"])
    _, decoder = verify(config, Layout.resolve(config))
    torch.manual_seed(0)
    model = make_model(config, decoder)
    plain = make_model(load_config(["--config", str(tmp_path / "job.toml")])[0], decoder)
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert {name.rpartition(".")[2] for name in unexpected} == {"lora_a", "lora_b"}
    tokens = torch.randint(2, 512, (4, 32))
    assert torch.equal(forward(model, tokens), forward(plain, tokens)), "adapters begin with no effect"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(forward(model, tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--fine_tuning.freeze", '["layer.*"]'], "fine_tuning.freeze: 'layer.*' matches no parameter, did you mean 'layers."),
        (["--fine_tuning.freeze", '["*"]'], "freezes everything"),
        (["--fine_tuning.freeze", '["output"]', "--fine_tuning.lora.rank", "4"], "leave freeze out"),
        (["--fine_tuning.lora.alpha", "4"], "fine_tuning.lora.alpha = 4.0: there are no adapters"),
        (
            ["--fine_tuning.lora.rank", "4", "--fine_tuning.lora.targets", '["*.wx"]'],
            "'*.wx' matches no linear layer of a block",
        ),
        (
            ["--fine_tuning.lora.rank", "4", "--fine_tuning.lora.targets", '["output"]'],
            "'output' matches no linear layer of a block",
        ),
        (["--fine_tuning.lora.rank", "4", "--optimizer.name", "Muon"], 'optimizer.name = "Muon"'),
        (["--fine_tuning.lora.rank", "4", "--float8.enable", "true", "--float8.emulate", "true"], "float8.enable = true"),
        ([*LORA[-2:], "--model.dim", "64"], "dim | 32         | 64"),
        ([*LORA[-2:], "--model.dim", "64"], "[model]\nvocab_size = 512\ndim = 32\n"),
        ([*LORA[-2:], "--checkpoint.initial_load_model_only", "false"], "holds weights alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-",
)
def test_what_would_not_do_what_it_says_is_refused(
    job: Path, overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, job, *(word.format(folder=job.parent) for word in overrides))
