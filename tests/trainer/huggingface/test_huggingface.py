"""Models leave as Hugging Face folders and come back bit for bit, from and to any layout."""

from __future__ import annotations

import hashlib
import json
import pickle
import resource
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from cistron.datasets.errors import InUseError
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from cistron.models.config import DecoderConfig, RopeConfig
from cistron.models.decoder import Decoder
from cistron.tests.helpers.jobs import refusal, save_in_layouts, train_here, write_job
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, QWEN, random_decoder
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.tools import cli
from cistron.trainer import checkpoints as checkpoint
from cistron.trainer.build import make_decoder_config
from cistron.trainer.checkpoints import (
    Found,
    Progress,
    RunState,
    SavedContract,
    Spec,
    WholeTensors,
    atomic_folder,
    file_index,
    write_whole,
)
from cistron.trainer.config import JobConfig, load_config
from cistron.trainer.errors import CheckpointError, ConfigError, EosMismatchError
from cistron.trainer.huggingface import export, import_folder
from cistron.trainer.huggingface.tokenizer_files import own_kind, tokenizer_files
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    EsmTokenizer,
    EuroBertConfig,
    EuroBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHAPES = {
    "llama": LLAMA,
    "llama-tied": LLAMA.replace(tie_embeddings=True),
    "qwen": QWEN,
    "qwen-tied": QWEN.replace(tie_embeddings=True),
    "llama-yarn": LLAMA.replace(rope=RopeConfig(scaling="yarn", factor=4.0, original_seq_len=2048, beta_fast=16.0)),
    "qwen-llama3": QWEN.replace(rope=RopeConfig(scaling="llama3", factor=8.0, original_seq_len=8192)),
}
TEXT = "the cat sat on the mat <|endoftext|> and \x01 the døg, too ."


def save(
    folder: Path,
    model: Decoder,
    table: TokenizerConfig | None = None,
    eos: int = EOS,
    pad: int = PAD,
    roles: dict[str, int | None] | None = None,
) -> Found:
    """A checkpoint that holds these weights and nothing else."""
    job = JobConfig(tokenizer=table or TokenizerConfig())
    contract = SavedContract(eos=eos, pad=pad, vocab=model.config.vocab_size, tokenizer=None, **(roles or {}))
    step = Progress(step=int(folder.name.removeprefix("step-")), tokens_seen=0, rows_hash=0, source_tokens={})
    state = RunState.of(config=job, model=model.config, contract=contract, progress=step)
    weights = model.state_dict()
    write_whole(folder, {k: Spec.of(v) for k, v in weights.items()}, weights.__getitem__, state)
    return checkpoint.read(folder)


def restore(found: Found) -> Decoder:
    """The decoder of a checkpoint."""
    shape = found.state.model
    tensors = WholeTensors(found.path)
    model = Decoder(shape)
    weights = {name: tensors.read(name) for name in tensors.names()}
    if shape.tie_embeddings:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    model.load_state_dict(weights, strict=True)
    return model


def logits(model: Decoder, tokens: Tensor) -> Tensor:
    """Of one document to a row."""
    rows, length = tokens.shape
    mask = torch.ones(rows, 1, length, length, dtype=torch.bool).tril()
    with torch.no_grad():
        return model(tokens, torch.arange(length, dtype=torch.int32).expand(rows, -1), mask)


def assert_same_model(ours: Decoder, folder: Path) -> None:
    """Transformers loads the folder, and computes what we do."""
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(2, ours.config.vocab_size, (2, 40))
    with torch.no_grad():
        assert_close(logits(ours, tokens), theirs.eval()(tokens).logits, rtol=1e-5, atol=1e-5)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("shard_size", [20_000, 10**9], ids=["sharded", "single"])
def test_weights_that_leave_and_come_back_are_the_same_bits(tmp_path: Path, shape: DecoderConfig, shard_size: int) -> None:
    ours = random_decoder(shape)
    out = tmp_path / "out"
    export(save(tmp_path / "step-7", ours), out, tokenizer=None, max_shard_size=shard_size)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert (len(files) == 1) == (shard_size == 10**9)
    for file in files:
        with safe_open(out / file, "pt") as opened:  # the format's own library, which checks every offset
            assert opened.metadata() == {"format": "pt"}
            assert sum(opened.get_tensor(name).nbytes for name in opened.keys()) <= shard_size  # noqa: SIM118
    assert_same_model(ours, out)

    import_folder(out, tmp_path / "back")
    back = restore(checkpoint.read(tmp_path / "back" / "step-0"))
    assert back.config == shape
    job, _ = load_config([str(tmp_path / "back" / "model.toml")])
    assert make_decoder_config(job, build_tokenizer(TokenizerConfig(kind="byte"))) == shape
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("config", "model"), [(LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)])
def test_what_transformers_saves_computes_the_same_here(tmp_path: Path, config: Any, model: Any, tied: bool) -> None:
    sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = model(config(**sizes, num_key_value_heads=2, head_dim=10, tie_word_embeddings=tied, eos_token_id=3)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.5, 0.3)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    messages = import_folder(tmp_path / "theirs", tmp_path / "ours")
    assert any("no tokenizer.json" in message for message in messages)
    found = checkpoint.read(tmp_path / "ours" / "step-0")
    assert found.state.contract == SavedContract(eos=3, pad=3, vocab=61, tokenizer=None, mask=None)
    tokens = torch.randint(0, 61, (2, 40))
    with torch.no_grad():
        assert_close(logits(restore(found), tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_an_export_does_not_depend_on_the_layout_that_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path, steps=1)
    for processes, layouts in ((4, [(2, 2)]), (2, [(2, 1), (1, 2)])):
        run_on_ranks(save_in_layouts, processes, str(config), layouts)
    folder = tmp_path / "alone"
    train_here(config, "--job.dump_folder", str(folder), "--optimizer.lr", "1e-30", "--checkpoint.last_save_in_hf", "true")
    alone = folder / "huggingface" / "step-1"
    assert f"exported {folder}/checkpoint/step-1 to {alone}: LlamaForCausalLM" in capsys.readouterr().out
    assert len(hashes(alone)) == 6
    for layout in ("2x2", "2x1", "1x2"):
        import_module("cistron.tools.export").main([f"{tmp_path}/{layout}/checkpoint", f"{tmp_path}/{layout}/hf"])
        assert hashes(tmp_path / layout / "hf") == hashes(alone)

    # text as the job read it, and a run that goes on from the imported weights
    ids = AutoTokenizer.from_pretrained(alone)(TEXT)["input_ids"]
    assert ids == build_tokenizer(TokenizerConfig(kind="byte")).encode(TEXT.encode()).tolist()
    import_module("cistron.tools.import").main([str(alone), str(tmp_path / "back")])
    toml = tmp_path / "again.toml"
    text = config.read_text().replace("[job]", f'extends = "{tmp_path}/back/model.toml"\n[job]', 1)
    before, after = text.index("[model]"), text.index("[data]")
    toml.write_text(text[:before] + text[after:])
    train_here(toml, "--job.dump_folder", str(tmp_path / "again"))
    assert f"weights from {tmp_path}/back/step-0" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE whose pad and eos are not the first ids, and which puts a token in front of every text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<bos>", "<|endoftext|>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([TEXT] * 9, trainer)
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<bos>"}, "model_max_length": 77}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_the_tokenizer_leaves_and_comes_back_with_the_ids_of_training(tmp_path: Path, tokenizer: Path) -> None:
    table = TokenizerConfig(kind="hf", path=str(tokenizer), eos_token="<|endoftext|>", pad_token="<pad>")
    trained = build_tokenizer(table)
    model = random_decoder(LLAMA.replace(vocab_size=320))
    out = tmp_path / "out"
    messages = export(save(tmp_path / "step-0", model, table, eos=1, pad=2), out, tokenizer=table)
    assert any("puts <bos> around a text by itself" in message for message in messages)
    theirs = AutoTokenizer.from_pretrained(out)
    text = TEXT.replace("<|endoftext|>", "")
    assert theirs(text, add_special_tokens=False)["input_ids"] == trained.encode(text.encode()).tolist()
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.model_max_length) == (1, 2, 77)
    assert theirs.chat_template == "{{ messages }}"

    import_folder(out, tmp_path / "back")
    found = checkpoint.read(tmp_path / "back" / "step-0")
    assert found.state.contract == SavedContract(eos=1, pad=2, vocab=320, tokenizer=trained.fingerprint)
    back = build_tokenizer(found.state.config.tokenizer)
    assert (back.fingerprint, back.eos_id, back.pad_id) == (trained.fingerprint, 1, 2)
    export(found, tmp_path / "again", tokenizer=found.state.config.tokenizer)
    told = json.loads((out / "config.json").read_text()), json.loads((tmp_path / "again" / "config.json").read_text())
    assert {key for key in told[0] if told[0][key] != told[1][key]} <= {"max_position_embeddings"}

    with pytest.raises(EosMismatchError, match="tokenizer says eos is 0, checkpoint says 1"):
        export(found, tmp_path / "wrong", tokenizer=TokenizerConfig(kind="hf", path=str(tokenizer)))
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    with pytest.raises(EosMismatchError, match="tokenizer says eos is 1, generation_config says 7 or 9"):
        import_folder(out, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_a_dtype_may_be_chosen_and_rounds_to_nearest(tmp_path: Path) -> None:
    model = random_decoder(LLAMA)
    export(save(tmp_path / "step-0", model), tmp_path / "out", tokenizer=None, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs.lm_head.weight, model.output.weight.bfloat16())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of two shards."""
    export(save(tmp_path / "step-0", random_decoder(QWEN)), tmp_path / "hf", tokenizer=None, max_shard_size=40_000)
    return tmp_path / "hf"


def test_every_tensor_that_does_not_fit_is_listed(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "intermediate_size": 50}))
    with pytest.raises(CheckpointError) as caught:
        import_folder(folder, tmp_path / "back")
    message = str(caught.value)
    assert "model.layers.2.self_attn.q_norm.weight: missing, it should be [16]" in message
    assert "model.layers.1.mlp.down_proj.weight: [32, 48] in " in message
    assert message.count("missing") == 11
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.self_attn\.q_norm\.weight: unexpected, \[16\] in"):
        import_folder(folder, tmp_path / "back")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lie(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1))


@pytest.mark.parametrize("damage", [cut, lie, lambda path: path.write_bytes(b"\xff" * 64), lambda path: path.write_bytes(b"")])
def test_a_damaged_file_is_named(folder: Path, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    damage(file)
    with pytest.raises(CheckpointError, match=f"{file.name}: not a whole safetensors file"):
        import_folder(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_no_pickle_is_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ConfigError, match=r"no model\.safetensors; pytorch_model\.bin is a pickle, which can run code"):
        import_folder(folder, tmp_path / "back")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        import_folder(folder, tmp_path / "back")
    assert not Path("exploded").exists()


def test_a_full_disk_leaves_no_half_export_nor_what_a_kill_left_before(tmp_path: Path) -> None:
    found, out = save(tmp_path / "step-0", random_decoder(LLAMA)), tmp_path / "out"
    left = tmp_path / "out.0123456789abcdef.partial"
    left.mkdir()
    (left / "model.safetensors").touch()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=f"{out}: not written: File too large"):
            export(found, out, tokenizer=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0"]


def test_a_killed_replacement_gives_the_former_export_back(tmp_path: Path) -> None:
    found, out = save(tmp_path / "step-0", random_decoder(LLAMA)), tmp_path / "out"
    export(found, out, tokenizer=None)
    out.rename(tmp_path / "out.0123456789abcdef.former")  # killed between the two renames
    (tmp_path / "out.0123456789abcdef.partial").mkdir()
    with pytest.raises(CheckpointError, match="out: exists already"):
        export(found, out, tokenizer=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "step-0"]


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """As where the lock was taken over: none of its files is lost or mixed."""
    out = tmp_path / "out"

    def write() -> None:
        with atomic_folder(out) as folder:
            (folder / "mine").touch()
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(CheckpointError, match="out: not written: Directory not empty"):
        write()
    assert [path.name for path in out.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_exports_at_once_have_one_winner_that_is_whole(tmp_path: Path) -> None:
    founds = [save(tmp_path / f"step-{n}", random_decoder(LLAMA.replace(dim=dim))) for n, dim in enumerate((64, 128))]
    told: list[str] = []
    barrier = threading.Barrier(2)

    def start(found: Found) -> None:
        barrier.wait(30)
        try:
            told.extend(export(found, tmp_path / "out", tokenizer=None, replace=True))
        except InUseError as error:
            told.append(str(error))

    threads = [threading.Thread(target=start, args=(found,)) for found in founds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    said = [line for line in told if line.startswith("exported")][-1]
    winner = next(found for found in founds if str(found.path) in said)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_size"] == winner.state.model.dim
    index = file_index(tmp_path / "out" / "model.safetensors")
    assert index["model.norm.weight"][0].shape == (winner.state.model.dim,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "step-0", "step-1"]


def test_only_an_export_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    found, out = save(tmp_path / "step-0", random_decoder(LLAMA)), tmp_path / "out"
    export(found, out, tokenizer=None, max_shard_size=20_000)
    with pytest.raises(ConfigError, match="exists already"):
        export(found, out, tokenizer=None)
    export(found, out, tokenizer=None, replace=True)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]
    (out / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"is no export, thesis\.tex"):
        export(found, out, tokenizer=None, replace=True)
    assert (out / "thesis.tex").exists()


def test_the_command_takes_the_newest_good_checkpoint_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: Path
) -> None:
    table = TokenizerConfig(kind="hf", path="/gone", eos_token="<|endoftext|>", pad_token="<pad>")
    command = import_module("cistron.tools.export").main
    for step in (1, 20):
        save(tmp_path / f"step-{step}", random_decoder(LLAMA.replace(vocab_size=320), seed=step), table, eos=1, pad=2)
    (tmp_path / "step-300").mkdir()
    with pytest.raises(SystemExit) as caught:
        cli.run("export", [str(tmp_path), str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "--tokenizer PATH says where it is now, --no-tokenizer leaves it out" in capsys.readouterr().err
    command([str(tmp_path), str(tmp_path / "out"), "--tokenizer", str(tokenizer), "--max-shard-size", "30KB"])
    output = capsys.readouterr().out
    assert "passed over" in output
    assert f"exported {tmp_path}/step-20 to {tmp_path}/out" in output
    with pytest.raises(SystemExit):
        command([str(tmp_path), str(tmp_path / "out"), "--max-shard-size", "big"])
    assert "'big' is not a size: write 5GB" in capsys.readouterr().err


def test_a_job_that_could_not_be_exported_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path)
    wanted = ("--checkpoint.last_save_in_hf", "true")
    assert "checkpoint.enable is false" in refusal(capsys, config, *wanted, "--checkpoint.enable", "false")
    assert "model.dim is 30 and model.n_heads 4" in refusal(capsys, config, *wanted, "--model.dim", "30")


@pytest.fixture(scope="module")
def esm(tmp_path_factory: pytest.TempPathFactory) -> EsmTokenizer:
    """ESM's own tokenizer, from its vocabulary file."""
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-|", "<mask>"]
    file = tmp_path_factory.mktemp("esm") / "vocab.txt"
    file.write_text("\n".join(tokens))
    return EsmTokenizer(str(file))


STRINGS = {
    "byte": "".join(map(chr, range(1, 0x180))) + "蛋\U0001f9ec",
    "protein": "LAGVSERTIDPKQNFYMHWCXBUZO.-|",
    "dna": "ACGTNRYSWKMBDHVacgtnryswkmbdhv-",
}


@pytest.mark.parametrize("kind", STRINGS)
def test_a_tokenizer_of_ours_gives_the_ids_of_training_in_transformers(tmp_path: Path, kind: str, esm: EsmTokenizer) -> None:
    ours = build_tokenizer(TokenizerConfig(kind=kind))
    table = TokenizerConfig.model_validate({"kind": kind})
    for name, content in tokenizer_files(table, ours).items():
        (tmp_path / name).write_bytes(content)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert own_kind(tmp_path / "tokenizer.json") == kind
    random = Random(7)
    texts = ["".join(random.choices(STRINGS[kind], k=random.randint(1, 60))) for _ in range(10_000)]
    framed = theirs(texts)["input_ids"]
    if kind == "protein":
        assert theirs("MKV")["input_ids"] == [0, 20, 15, 7, 2]
        assert framed == [[*ours.encode(text.encode()).tolist(), ours.eos_id] for text in texts]
        assert framed == esm(texts)["input_ids"]
        assert theirs("MKV", "LAG")["input_ids"] == esm("MKV", "LAG")["input_ids"]
    else:
        assert framed == [ours.encode(text.encode()).tolist() for text in texts]
    for role in ("eos", "pad", "mask", "unk"):
        assert getattr(theirs, f"{role}_token_id") == getattr(ours, f"{role}_id")
    assert theirs.cls_token_id == ours.bos_id
    for text, ids in zip(texts[:100], framed, strict=False):
        assert theirs.decode(ids, skip_special_tokens=True) == (text.upper() if kind == "dna" else text).replace("\1", "")

    theirs.save_pretrained(tmp_path / "again")
    assert own_kind(tmp_path / "again" / "tokenizer.json") == kind


@pytest.mark.parametrize("kind", ["protein", "dna"])
def test_mapped_letters_have_the_same_ids_in_transformers(tmp_path: Path, kind: str) -> None:
    table = TokenizerConfig.model_validate({"kind": kind, "on_unknown": "map"})
    ours = build_tokenizer(TokenizerConfig(**table.model_dump()))
    for name, content in tokenizer_files(table, ours).items():
        (tmp_path / name).write_bytes(content)
    random = Random(8)
    printable = "".join(map(chr, range(0x21, 0x7F)))
    texts = ["".join(random.choices(printable, k=random.randint(1, 60))) for _ in range(10_000)]
    found = AutoTokenizer.from_pretrained(tmp_path)(texts, add_special_tokens=False)["input_ids"]
    assert found == [ours.encode(text.encode())[ours.bos_id is not None :].tolist() for text in texts]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_an_encoder_leaves_as_eurobert_and_comes_back_as_the_same_bits(tmp_path: Path, tied: bool) -> None:
    shape = LLAMA.replace(vocab_size=33, causal=False, tie_embeddings=tied)
    ours = random_decoder(shape)
    table = TokenizerConfig(kind="protein")
    letters = build_tokenizer(table)
    roles = {role: getattr(letters, f"{role}_id") for role in ("bos", "mask", "unk")}
    found = save(tmp_path / "step-7", ours, table, eos=2, pad=1, roles=roles)
    messages = export(found, tmp_path / "out", tokenizer=table)
    assert not any("by itself" in message for message in messages), "training has <cls> and <eos> too"

    theirs, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(theirs) is EuroBertForMaskedLM
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(["MKV<mask>LAGW", "C" * 40], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs.eval()(**batch).logits
        for tokens, mine, length in zip(batch["input_ids"], logits, batch["attention_mask"].sum(1).tolist(), strict=True):
            positions = torch.arange(length, dtype=torch.int32)[None]
            mask = torch.ones(1, 1, length, length, dtype=torch.bool)
            assert_close(ours(tokens[None, :length], positions, mask)[0], mine[:length], rtol=1e-5, atol=1e-5)

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[f"{role}_token_id"] for role in ("bos", "eos", "pad", "mask")] == [0, 2, 1, 32]
    import_folder(tmp_path / "out", tmp_path / "back")
    back = checkpoint.read(tmp_path / "back" / "step-0")
    assert restore(back).config == shape
    assert all(torch.equal(a, b) for a, b in zip(restore(back).parameters(), ours.parameters(), strict=True))
    assert back.state.contract == found.state.contract.model_copy(update={"tokenizer": "protein"})
    toml = (tmp_path / "back" / "model.toml").read_text()
    assert 'kind = "protein"' in toml
    assert '[training]\nobjective = "mlm"' in toml

    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"mask_token_id": 31}))
    with pytest.raises(EosMismatchError, match="tokenizer says mask is 32, config says 31"):
        import_folder(tmp_path / "out", tmp_path / "wrong")
    for file in (tmp_path / "out").glob("*token*"):
        file.unlink()
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"mask_token_id": None}))
    assert any("no file states a mask token" in message for message in import_folder(tmp_path / "out", tmp_path / "bare"))


def test_what_transformers_saves_of_an_encoder_computes_the_same_here(tmp_path: Path) -> None:
    sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    roles = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 3, "mask_token_id": 4}
    theirs = EuroBertForMaskedLM(EuroBertConfig(**sizes, **roles, num_key_value_heads=2)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "ours")
    found = checkpoint.read(tmp_path / "ours" / "step-0")
    assert (found.state.contract.mask, found.state.config.training.objective) == (4, "mlm")
    tokens = torch.randint(0, 61, (2, 40))
    mask = torch.ones(2, 1, 40, 40, dtype=torch.bool)
    with torch.no_grad():
        ours = restore(found)(tokens, torch.arange(40, dtype=torch.int32).expand(2, -1), mask)
        assert_close(ours, theirs(tokens, attention_mask=torch.ones_like(tokens)).logits, rtol=1e-5, atol=1e-5)
