"""Documents longer than those of training: what is measured, of which documents, and that nothing stays changed."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cistron.datasets.tokenizers import Tokenizer, TokenizerConfig, build_tokenizer
from cistron.models.attention import DocumentMask
from cistron.models.config import AttentionConfig, DecoderConfig, RopeConfig, check_length
from cistron.models.errors import ModelError
from cistron.tests.helpers.jobs import column, metrics, refusal, train, train_here, write_job
from cistron.tests.helpers.models import BYTE, CAUSAL, ready
from cistron.tools import check, cli
from cistron.trainer.config import Continuation, Extrapolation, Passkey, load_config
from cistron.trainer.errors import ConfigError
from cistron.trainer.extrapolation import METHODS, LongRowModel, evaluate, trained_as
from cistron.trainer.extrapolation.continuation import ROUGE, continue_greedily
from cistron.trainer.extrapolation.continuation import continuation_scores as compare
from cistron.trainer.extrapolation.measures import LongDocuments, Plan, by_position
from cistron.trainer.extrapolation.methods import STRETCHED, Trained, choose, settings_of, settings_text
from cistron.trainer.extrapolation.passkey import PROSE, SEQUENCES, prompts, retrieved
from cistron.trainer.heartbeat import Heartbeat
from cistron.trainer.inference import inference_mask
from cistron.trainer.metrics.sinks import forget_files_after
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer

L = 32
LENGTHS = (32, 64, 256)
KNOWN = Trained(CAUSAL, L, L)
TABLE = Extrapolation(score_last=10, passkey=Passkey(samples=0))


def long_model(config: DecoderConfig = CAUSAL, batch_tokens: int = 300) -> LongRowModel:
    opened = ready(config, BYTE)
    return LongRowModel(
        model=opened.model, tokenizer=BYTE, device=opened.device, dtype=torch.float32, batch_tokens=batch_tokens
    )


def texts(*lengths: int) -> list[Any]:
    draw = np.random.default_rng(0)
    return [draw.integers(97, 123, size=length) for length in lengths]


def dense(asked: LongRowModel, ids: Any) -> torch.Tensor:
    """Logits of one document by itself, without padding, under a dense mask: [length, vocab]."""
    model = asked.model
    mask = DocumentMask(eos_id=0, pad_id=1, executor="sdpa", attention=model.config.attention)
    tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None]
    positions = torch.arange(len(ids), dtype=torch.int32)[None]
    with torch.no_grad():
        return model(tokens, positions, mask.build(torch.zeros_like(positions)))[0]


@pytest.mark.parametrize("method", ["trained", "yarn", "lambda", "rerope"])
def test_losses_and_likeliest_tokens_are_those_of_each_document_alone(method: str) -> None:
    asked, documents = long_model(), texts(100, 100, 100, 100)  # rows of three, padded to 128
    asked.model.set_positions(*settings_of(method, KNOWN, 100))
    alone = [dense(asked, ids) for ids in documents]
    expected = [
        F.cross_entropy(x[:-1], torch.from_numpy(ids)[1:], reduction="none") for x, ids in zip(alone, documents, strict=True)
    ]
    torch.testing.assert_close(torch.from_numpy(asked.losses(documents)).float(), torch.stack(expected), rtol=1e-4, atol=1e-5)
    likeliest = np.stack([x[-7:, : BYTE.vocab_size].argmax(-1).numpy() for x in alone])
    np.testing.assert_array_equal(asked.likeliest(documents, 7), likeliest)
    assert dense(asked, documents[0]).shape == (100, CAUSAL.vocab_size), "the model gives all logits again"


def test_documents_that_are_too_short_are_counted_and_never_used() -> None:
    documents = LongDocuments.of(texts(31, 32, 300, 64, 63, 257, 256, 10), LENGTHS, limit=2)
    assert (documents.read, documents.qualified) == (8, {32: 6, 64: 4, 256: 3})
    assert [list(map(len, documents.at_least(length))) for length in LENGTHS] == [[32, 256], [256, 64], [256, 256]]
    assert "of 8 documents there are 6 of at least 32 tokens (2 used)" in str(documents)


def test_a_length_that_no_document_has_is_refused_with_the_counts() -> None:
    with pytest.raises(ConfigError, match=r"of 2 documents there are 2 of at least 32 tokens.* 0 of at least 256 tokens"):
        LongDocuments.of(texts(255, 40), LENGTHS, limit=4)


def test_the_same_last_tokens_are_judged_with_more_and_more_before_them() -> None:
    asked = long_model()
    documents = LongDocuments.of(texts(300, 40, 256), LENGTHS, limit=8)
    results = evaluate(asked, TABLE, Plan(KNOWN, ["trained"], documents, []))
    long = [ids[:256] for ids in documents.ids if len(ids) >= 256]
    for result in results:
        seen = [torch.from_numpy(ids[-result.length :]) for ids in long]
        losses = [F.cross_entropy(dense(asked, ids)[-11:-1], ids[-10:]) for ids in seen]
        assert math.isclose(result.last_loss, sum(losses) / len(losses), rel_tol=1e-5)
        at_least = [torch.from_numpy(ids[: result.length]) for ids in documents.at_least(result.length)]
        losses = [F.cross_entropy(dense(asked, ids)[:-1], ids[1:]) for ids in at_least]
        assert math.isclose(result.loss, sum(losses) / len(losses), rel_tol=1e-5)
    stretches = results[-1].positions
    weights = [last - first + 1 for first, last, _ in stretches]
    assert (stretches[0][0], stretches[-1][1], sum(weights)) == (1, 255, 255)
    assert math.isclose(np.average([loss for *_, loss in stretches], weights=weights), results[-1].loss, rel_tol=1e-9)


def test_positions_are_those_of_the_tokens_that_are_predicted() -> None:
    losses = np.arange(1.0, 64.0)[None]  # of positions 1 to 63
    assert all(loss == (first + last) / 2 for first, last, loss in by_position(losses))


def test_an_evaluation_leaves_the_model_as_it_was() -> None:
    asked, (ids,) = long_model(), texts(64)
    before = dense(asked, ids)
    documents = LongDocuments.of(texts(64), (32, 64), limit=1)
    results = evaluate(asked, TABLE, Plan(KNOWN, list(METHODS), documents, []))
    assert len({result.last_loss for result in results if result.length == 64}) > 10, "methods differ"
    assert asked.model.config == CAUSAL
    assert torch.equal(dense(asked, ids), before)


def test_a_stop_between_two_batches_ends_an_evaluation_and_leaves_the_model_as_it_was() -> None:
    class Enough(Exception):
        pass

    batches = []

    def tick(tokens: int) -> None:
        batches.append(tokens)
        if len(batches) == 2:
            raise Enough

    asked, documents = replace(long_model(), tick=tick), texts(*[64] * 12)
    with pytest.raises(Enough):
        evaluate(asked, TABLE, Plan(KNOWN, ["rerope"], LongDocuments.of(documents, (64,), limit=12), []))
    assert len(batches) == 2
    assert asked.model.config == CAUSAL


# methods -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_every_method_fit_every_length(method: str, times: int) -> None:
    rope, attention, length = settings_of(method, Trained(CAUSAL, 256, 256), 256 * times)
    assert length == 256 * times
    assert not rope.complaints_beside(CAUSAL.head_dim)
    assert not attention.complaints_beside(rope)
    assert not check_length(rope, attention, 256 * times)
    if method in STRETCHED and times == 1:
        assert (rope, attention) == (CAUSAL.rope, CAUSAL.attention), "as trained"


def test_what_a_model_was_trained_with_is_kept_and_not_replaced() -> None:
    yarn = CAUSAL.replace(rope=RopeConfig(scaling="yarn", factor=2.0, original_seq_len=64))
    chosen, left_out = choose([], Trained(yarn, 64, 64), [64, 256])
    assert chosen == [method for method in METHODS if method not in STRETCHED]
    assert left_out == [f'left out {", ".join(STRETCHED)}: the model was trained with model.rope.scaling = "yarn" already']
    windowed = CAUSAL.replace(attention=AttentionConfig(mask="sliding", window=16))
    assert choose([], Trained(windowed, 64, 64), [64, 256])[0] == ["trained", *STRETCHED]
    short = yarn.replace(attention=AttentionConfig(position_map="self_extend", map_window=32, group=2))
    with pytest.raises(ModelError, match="group is 2, too little for 256 tokens"):
        choose(["trained"], Trained(short, 64, 64), [64, 256])
    with pytest.raises(ModelError, match="linear: the model was trained with"):
        choose(["linear"], Trained(yarn, 64, 64), [256])
    with pytest.raises(ConfigError, match="'yran' is no method, did you mean 'yarn'"):
        choose(["yran"], KNOWN, [256])
    sharpened = CAUSAL.replace(attention=AttentionConfig(logn=True), rope=RopeConfig(original_seq_len=64))
    with pytest.raises(ModelError, match=r"rerope: the model was trained with model\.attention\.logn = true already"):
        choose(["rerope"], Trained(sharpened, 64, 64), [256])


@pytest.mark.parametrize("method", ["trained", "rerope"])
def test_a_table_of_training_that_depends_on_the_length_is_resolved_anew_beyond_its_rows_alone(method: str) -> None:
    dynamic = CAUSAL.replace(rope=RopeConfig(scaling="dynamic_ntk", factor=2.0, original_seq_len=32))
    known = Trained(dynamic, 32, 64)
    assert [settings_of(method, known, length).length for length in (32, 64, 128)] == [64, 64, 128]
    assert [settings_text(settings_of("trained", known, length), known) for length in (64, 128)] == ["", "length=128"]
    model = ready(dynamic, BYTE).model
    tables = []
    for length in (32, 64, 128):
        model.set_positions(*settings_of(method, known, length))
        tables.append(model.inv_freq)
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[1], tables[2])


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("trained", ""),
        ("yarn", "scaling=yarn factor=4 beta_fast=32 beta_slow=1 ramp=index"),
        ("linear", "scaling=linear factor=4"),
        ("lambda", "mask=lambda window=256 sinks=4"),
        ("self_extend", "position_map=self_extend map_window=128 group=8"),
        ("logn", "logn=True"),
    ],
)
def test_settings_tell_all_that_a_method_reads(method: str, told: str) -> None:
    known = Trained(CAUSAL, 256, 256)
    assert settings_text(settings_of(method, known, 1024), known) == told


def test_a_model_that_a_scaling_has_led_on_is_judged_from_there() -> None:
    yarn = CAUSAL.replace(rope=RopeConfig(scaling="yarn", factor=4.0, original_seq_len=64))
    known, said = trained_as(yarn, 256, "training.seq_len")
    assert (known.length, said) == (256, "trained length 256 (training.seq_len; with yarn scaling, from 64)")
    rope, attention, _ = settings_of("rerope", known, 1024)
    assert (rope, attention.map_window) == (yarn.rope, 128)
    assert settings_text(settings_of("self_extend", known, 1024), known) == "position_map=self_extend map_window=128 group=8"
    assert trained_as(CAUSAL.replace(rope=RopeConfig(original_seq_len=64)), 32, "")[0].length == 64
    assert trained_as(CAUSAL, 32, "training.seq_len") == (Trained(CAUSAL, 32, 32), "trained length 32 (training.seq_len)")


@pytest.mark.parametrize("trained", [202, 256, 1018])
def test_groups_are_the_least_that_reach_whatever_the_window_divides_by(trained: int) -> None:
    for times, least in ((2, 8), (4, 8), (8, 16)):
        found = settings_of("self_extend", Trained(CAUSAL, trained, trained), times * trained).attention
        assert found.map_window is not None
        assert found.group <= least
        assert trained // 2 - found.group < found.map_window <= trained // 2


def test_what_is_named_twice_is_measured_once() -> None:
    table = Extrapolation(methods=["yarn", "rerope", "yarn"], passkey=Passkey(depths=[0.5, 0, 0.5]))
    assert (table.methods, table.passkey.depths) == (["yarn", "rerope"], [0.5, 0])


# pass keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte", "dna", "protein"])
def test_a_key_is_hidden_at_its_depth_and_stands_at_the_end(kind: str) -> None:
    tokenizer: Tokenizer = build_tokenizer(TokenizerConfig(kind=kind))
    hay = [tokenizer.encode_batch([b"A" * 999]).ids]
    words = SEQUENCES.get(kind, PROSE)
    places = []
    for depth in (0.0, 0.5, 1.0):
        for prompt in prompts(Passkey(samples=3), tokenizer, hay, 400, depth):
            assert len(prompt.ids) == 400
            assert prompt.ids[0] == hay[0][0] or tokenizer.bos_id is None
            text = tokenizer.decode(prompt.ids.tolist())
            key = text[-5:]
            said = words.needle.replace("{key}", key)
            assert text.endswith(words.query + key)
            assert text.count(said) == 1 + (words.needle == words.query + "{key}"), "once, and by the query's own end"
            places.append(text.index(said) / (text.rindex(words.query) - len(said)))
    assert places == pytest.approx([0.0] * 3 + [0.5] * 3 + [1.0] * 3, abs=0.03)


def test_a_key_counts_when_all_of_its_tokens_are_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(Passkey(samples=4), BYTE, texts(300), 256, 0.5)

    def knows(wrong: int) -> float:
        """What a model retrieves that says the token after each but for one digit of the first `wrong` keys."""

        def likeliest(_: LongRowModel, documents: list[Any], last: int) -> Any:
            after = np.stack([np.append(ids[1:], 0) for ids in documents])
            after[:wrong, -3] += 1
            return after[:, -last:]

        monkeypatch.setattr(LongRowModel, "likeliest", likeliest)
        return retrieved(long_model(), asked)

    assert [knows(0), knows(1), knows(4)] == [1.0, 0.75, 0.0]


def test_a_length_that_has_no_room_for_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="64 tokens are too few for needle, query and key"):
        prompts(Passkey(), BYTE, texts(300), 64, 0.5)


# continuations -------------------------------------------------------------------------------------------------------


def test_continuations_are_the_likeliest_tokens_one_by_one() -> None:
    asked, documents = long_model(), texts(50, 50)
    continued = continue_greedily(asked, documents, 4)
    for ids, new in zip(documents, continued, strict=True):
        row = ids.tolist()
        for token in new:
            assert int(dense(asked, row)[-1, : BYTE.vocab_size].argmax()) == token
            row.append(int(token))
        assert len(new) == 4 or int(dense(asked, row)[-1, : BYTE.vocab_size].argmax()) == BYTE.eos_id


def test_bleu_and_rouge_are_100_for_the_same_text_and_less_for_another() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    words = "the cat sat on the mat and slept"
    table = Continuation(samples=1)
    assert compare(table, [words], [words]) == pytest.approx(dict.fromkeys(["bleu", *ROUGE], 100.0))
    # 6 of 8 words, of which pairs 5 of 7
    other = compare(table, ["the cat sat on the mat"], [words])
    assert other["rouge1"] == pytest.approx(100 * 2 * 6 / (6 + 8))
    assert 0 < other["bleu"] < 100


# in training ---------------------------------------------------------------------------------------------------------

LONG = """
[[validation.sources]]
name = "long"
format = "jsonl"
paths = ["{folder}/long.jsonl"]
[eval.extrapolation]
enable = true
freq = 2
lengths = ["1x", 128]
methods = ["trained", "yarn", "rerope"]
score_last = 16
documents = 5
passkey = {{ samples = 2, depths = [0.5], needle = "@{{key}}", query = "@" }}
"""


def write_long(folder: Path, steps: int = 3) -> Path:
    draw = random.Random(3)
    lengths = [300, 20, 90, 127, 126, 200, 10, 150]
    lines = [json.dumps({"text": "".join(draw.choices("abc ", k=length))}) for length in lengths]
    (folder / "long.jsonl").write_text("\n".join(lines) + "\n")
    return write_job(folder, steps, LONG.format(folder=folder))


def found(config: Path, run: str = "run") -> list[dict[str, Any]]:
    lines = (config.parent / run / "extrapolation.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_long(tmp_path_factory.mktemp("extrapolation"))
    train_here(config)
    return config


def test_training_evaluates_at_its_period_and_after_the_last_step(straight: Path) -> None:
    records = found(straight)
    assert [record["step"] for record in records] == [2, 3]
    names = {f"{method}/{name}/{n}" for method in ("trained", "yarn", "rerope") for name in MEASURES for n in (64, 128)}
    assert set(records[0]) == {"step"} | names
    assert records[0]["yarn/loss/64"] == records[0]["trained/loss/64"]
    assert records[0]["yarn/loss/128"] != records[0]["trained/loss/128"]
    folder = straight.parent / "run" / "extrapolation"
    assert {path.name for path in folder.iterdir()} == {f"step-{step}.{kind}" for step in (2, 3) for kind in ("json", "png")}
    said = json.loads((folder / "step-3.json").read_text())
    assert (said["documents_read"], said["documents_qualified"]) == (8, {"64": 6, "128": 4})


def test_a_stop_ends_an_evaluation_after_a_batch_and_leaves_no_record(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = load_config(["--config", str(straight), "--job.dump_folder", str(tmp_path)])
    trainer = Trainer(config, join(config), StopRequest())
    (evaluation,), ready_to_save, advanced, asked = trainer.evaluations, trainer.saver, [], []
    monkeypatch.setattr(type(ready_to_save), "ready", True)
    monkeypatch.setattr(ready_to_save, "advance", lambda: advanced.append(len(asked)))

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    assert evaluation.run(1, trainer.model, Heartbeat(trainer.world, stop, ready_to_save)) is None
    assert (len(asked), advanced) == (3, [1, 2, 3]), "asked after every batch, and a checkpoint under way goes on"
    assert not (tmp_path / "extrapolation").exists()
    assert trainer.model.config == trainer.decoder_config
    trainer.close()


@pytest.mark.parametrize(("executor", "method", "used"), [("sdpa", "trained", "sdpa"), ("varlen", "rerope", "sdpa")])
def test_an_executor_that_the_job_names_is_used_where_it_can(executor: str, method: str, used: str) -> None:
    asked = replace(long_model(), executor=executor)
    asked.model.set_positions(*settings_of(method, KNOWN, 64))
    assert inference_mask(BYTE, asked.model.config, asked.device, asked.dtype, executor).executor == used
    assert inference_mask(BYTE, CAUSAL, asked.device, asked.dtype).executor == "varlen"


def test_a_picture_that_cannot_be_written_is_no_reason_to_stop(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    job = ["--job.dump_folder", str(tmp_path / "run"), "--eval.extrapolation.methods", '["trained"]', "--training.steps", "1"]
    config, _ = load_config(["--config", str(straight), *job])
    trainer = Trainer(config, join(config), StopRequest())
    (tmp_path / "run" / "extrapolation").touch()
    (evaluation,) = trainer.evaluations
    record = evaluation.run(1, trainer.model, trainer.heartbeat)
    trainer.close()
    assert record is not None
    assert "warning: step 1 is not whole in" in capsys.readouterr().err


def test_what_an_abandoned_run_left_of_later_steps_is_forgotten(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight.parent / "run" / "extrapolation", tmp_path / "extrapolation")
    forget_files_after(tmp_path / "extrapolation", 2)
    assert {path.name for path in (tmp_path / "extrapolation").iterdir()} == {"step-2.json", "step-2.png"}
    forget_files_after(tmp_path / "extrapolation", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["extrapolation.aside"]


def test_check_refuses_what_training_would_and_tells_what_qualifies(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check.main(["--config", str(straight)])
    said = capsys.readouterr().out
    assert "of 8 documents there are 6 of at least 64 tokens" in said
    assert "warning: rerope: model.attention is not that of its training" in said
    with pytest.raises(SystemExit):
        cli.run("check", ["--config", str(straight), "--eval.extrapolation.methods", '["yran"]'])
    assert "'yran' is no method" in capsys.readouterr().err


MEASURES = ("loss", "last_loss", "passkey")


def test_training_takes_the_same_steps_with_and_without_it(straight: Path, tmp_path: Path) -> None:
    train_here(straight, "--eval.extrapolation.enable", "false", "--job.dump_folder", str(tmp_path / "run"))
    assert column(metrics(tmp_path / "job.toml"), "loss") == column(metrics(straight), "loss")
    assert not (tmp_path / "run" / "extrapolation.jsonl").exists()


@pytest.mark.parametrize("degree", ["data_parallel_shard_degree", "tensor_parallel_degree", "context_parallel_degree"])
def test_two_ranks_find_the_same_as_one(straight: Path, degree: str) -> None:
    train(straight, f"--parallelism.{degree}", "2", "--job.dump_folder", str(straight.parent / degree), processes=2)
    for one, two in zip(found(straight), found(straight, degree), strict=True):
        assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--compile.enable", "true"], "eval.extrapolation.enable = true: every length and method would be compiled"),
        (["--validation.sources", "[]"], "eval.extrapolation.enable = true: reads [[validation.sources]]"),
        (["--training.objective", "mlm"], 'predicts no next token; it needs "causal"'),
        (["--eval.extrapolation.lengths", '["2 x"]'], "eval.extrapolation.lengths = '2 x': must be a number of tokens"),
        (["--eval.extrapolation.lengths", "[64, 512]"], "0 of at least 512 tokens"),
        (["--eval.extrapolation.score_last", "64"], "eval.extrapolation.score_last = 64: must be below the shortest"),
        (["--eval.extrapolation.passkey", '{"digits": 40}'], "64 tokens are too few for needle, query and key"),
        (["--eval.extrapolation.methods", '["alibi"]'], "'alibi' is no method"),
        (["--eval.extrapolation.passkey", '{"needle": "x", "query": "y"}'], "must contain {key}"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert message in refusal(capsys, straight, "--job.dump_folder", str(tmp_path / "run"), *overrides)
