"""Which files of a folder are read, as transformers would; folders of other programs, with advice that leads on."""

import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from cistron.trainer.checkpoints import FileSet, Folder, read_newest
from cistron.trainer.config import load_config
from cistron.trainer.errors import CheckpointError, ConfigError, EosMismatchError
from cistron.trainer.huggingface import HuggingFaceFolder, import_folder, open_for_job
from cistron.trainer.inference import open_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

SIZES = {"vocab_size": 41, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TABLE = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in parts, `old`, and another one in one file, `new`."""
    folder = tmp_path_factory.mktemp("saved")
    for name, size in (("old", "4KB"), ("new", "1GB")):
        torch.manual_seed(len(name) + ord(name[0]))
        LlamaForCausalLM(LlamaConfig(**SIZES, eos_token_id=3)).save_pretrained(folder / name, max_shard_size=size)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """The parts and their index, and beside them the newer file."""
    shutil.copytree(saved / "old", tmp_path / "model")
    shutil.copy(saved / "new" / "model.safetensors", tmp_path / "model")
    return tmp_path / "model"


def table_of(opened: HuggingFaceFolder) -> torch.Tensor:
    with FileSet(Folder(opened.path), opened.index) as files:
        return files.whole("model.tok_embeddings.weight")


def test_the_file_that_transformers_reads_is_read_and_the_rest_is_named(folder: Path, saved: Path, tmp_path: Path) -> None:
    theirs = LlamaForCausalLM.from_pretrained(folder).model.embed_tokens.weight
    opened = HuggingFaceFolder.open(Folder(folder))
    assert torch.equal(table_of(opened), theirs)
    assert torch.equal(theirs, load_file(saved / "new" / "model.safetensors")[TABLE])
    assert "weights from model.safetensors; beside them, not read: model-00001-of-" in opened.said
    assert "model.safetensors.index.json" in opened.said
    assert opened.said in import_folder(folder, tmp_path / "out")
    assert open_for_job(Folder(folder), TokenizerConfig())[1] == opened.said

    for part in folder.glob("model-*"):  # as transformers leaves the folder: parts removed, their index not
        part.unlink()
    assert torch.equal(table_of(HuggingFaceFolder.open(Folder(folder))), theirs)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"there is no model-00001.*, which model\.safetensors\.index\.json names; copy it"):
        HuggingFaceFolder.open(Folder(folder))


def test_a_file_that_the_config_names_comes_first(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "model.safetensors.index.json"}))
    theirs = LlamaForCausalLM.from_pretrained(folder).model.embed_tokens.weight
    opened = HuggingFaceFolder.open(Folder(folder))
    assert torch.equal(table_of(opened), theirs)
    assert "files that model.safetensors.index.json names; beside them, not read: model.safetensors" in opened.said
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    with pytest.raises(ConfigError, match=r"transformers_weights is 'adapter_model.bin'; it must name a safetensors file"):
        HuggingFaceFolder.open(Folder(folder))


def test_a_link_that_leads_nowhere_is_passed_over_as_transformers_does(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone")
    assert "names" in HuggingFaceFolder.open(Folder(folder)).said
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match=r"no model\.safetensors, which is a link that leads nowhere"):
        HuggingFaceFolder.open(Folder(folder))


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    parts = sorted(folder.glob("model-*"))
    held = load_file(parts[-1])
    save_file({**held, TABLE: torch.zeros(41, 16)}, parts[-1])
    with pytest.raises(CheckpointError, match=rf"{TABLE}: both in model-00001-of-\d+.safetensors and in {parts[-1].name}"):
        HuggingFaceFolder.open(Folder(folder))


OTHERS = {
    "adapter_config.json adapter_model.safetensors": "an adapter of peft.*merge_and_unload",
    "adapter_config.json adapter_model.safetensors tokenizer.json": "an adapter of peft.*merge_and_unload",
    "model-q4.gguf README.md": r"of GGUF: AutoModelForCausalLM.*gguf_file='model-q4.gguf'",
    "model_index.json": "a diffusers pipeline",
    ".metadata __0_0.distcp": "of torch.distributed.checkpoint",
    "model-00002-of-00003.safetensors": "index.json, which lists the parts, is not there",
    "pytorch_model.bin": "a pickle, which can run code",
    "model.safetensors tokenizer.json": "no config.json: copy it",
    "tokenizer.json tokenizer_config.json": "name the folder in tokenizer.path",
    "consolidated.00.pth params.json": "by the names of the program that made them",
    "latest_checkpointed_iteration.txt": "of Megatron or DeepSpeed",
    "flax_model.msgpack": "of TensorFlow or Flax",
    "refs/main snapshots/abc/config.json": "the hub's cache: name the folder inside of snapshots",
    "checkpoint-70/config.json": "it holds checkpoint-70, of transformers' Trainer",
}


@pytest.mark.parametrize("files", OTHERS)
def test_a_folder_of_another_program_says_what_it_is_and_what_to_do(tmp_path: Path, files: str) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=f"has no config.json: .*{OTHERS[files]}"):
        HuggingFaceFolder.open(Folder(tmp_path))
    with pytest.raises(CheckpointError, match=OTHERS[files]) as caught:  # as in checkpoint.initial_load_path
        read_newest(tmp_path)
    assert "interrupted" not in str(caught.value)


@pytest.mark.parametrize(("files", "problem"), [
    ("model.bf16.safetensors", "of a variant.*variant="),
    ("model-00001-of-00002.safetensors", "is not there: copy it"),
    ("adapter_config.json", "merge_and_unload"),
    ("weights-q8.gguf", "gguf_file='weights-q8.gguf'"),
])  # fmt: skip
def test_a_config_without_weights_says_what_lies_there_instead(saved: Path, tmp_path: Path, files: str, problem: str) -> None:
    shutil.copy(saved / "new" / "config.json", tmp_path)
    (tmp_path / files).touch()
    with pytest.raises(ConfigError, match=rf"there is no model\.safetensors; {re.escape(files)} .*{problem}"):
        HuggingFaceFolder.open(Folder(tmp_path))


def test_what_is_no_folder_of_a_model_says_so(saved: Path, tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path / "org/name", "there is no such folder; `hf download NAME"),
        (saved / "new" / "model.safetensors", "it is a file; name the folder"),
    ):
        with pytest.raises(ConfigError, match=problem):
            HuggingFaceFolder.open(Folder(path))
    import_folder(saved / "new", tmp_path / "ours")
    with pytest.raises(ConfigError, match="it holds step-0, a checkpoint of Cistron, which needs no import"):
        HuggingFaceFolder.open(Folder(tmp_path / "ours"))


@pytest.mark.parametrize("stated", ["tokenizer", "config", "both"])
def test_a_pad_that_is_the_unknown_token_is_settled_as_the_message_says(saved: Path, tmp_path: Path, stated: str) -> None:
    folder = tmp_path / "a model"
    shutil.copytree(saved / "new", folder)
    made = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "</s>", "unk_token": "<unk>", **({} if stated == "config" else {"pad_token": "<unk>"})}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config | ({} if stated == "tokenizer" else {"pad_token_id": 0})))
    (folder / "generation_config.json").unlink()
    with pytest.raises(EosMismatchError) as caught:
        import_folder(folder, tmp_path / "out")
    (command,) = re.findall(r"`cistron (.*)`", str(caught.value))
    argv = shlex.split(command.replace(str(folder), shlex.quote(str(folder))).replace("OUT", str(tmp_path / "out")))
    import_module(f"cistron.tools.{argv[0]}").main(argv[1:])
    job, _ = load_config([str(tmp_path / "out" / "model.toml")])
    tokenizer = build_tokenizer(job.tokenizer)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (2, 2)
    assert "pad_token_id" not in (tokenizer.hf_config or {})
    assert open_model(tmp_path / "out" / "step-0", device="cpu").mask.pad_id == 2


def test_the_text_part_of_a_model_of_images_is_saved_as_the_docs_say(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=8, patch_size=4, projection_dim=8)
    both = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**SIZES, eos_token_id=3), image_token_index=40)
    LlavaForConditionalGeneration(both).save_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match=r"docs/huggingface\.md shows how its text part, a llama, is saved alone"):
        HuggingFaceFolder.open(Folder(tmp_path / "both"))
    docs = Path(__file__).parents[3] / "docs" / "huggingface.md"
    code = re.findall(r"^    (.*(?:whole|AutoModelForImageTextToText|text\.).*)$", docs.read_text(), re.MULTILINE)
    exec("\n".join(code), {"FOLDER": tmp_path / "both", "OUT": tmp_path / "text"})
    opened = HuggingFaceFolder.open(Folder(tmp_path / "text"))
    whole = LlavaForConditionalGeneration.from_pretrained(tmp_path / "both")
    assert torch.equal(table_of(opened), whole.model.language_model.embed_tokens.weight)
