"""Cistron, a bare loop and Hugging Face Trainer as contenders of `train_speed.py`; torchtitan has a file of its own."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from interleaved import Repeats, Rows


def cistron(repeats: Repeats) -> None:
    """The whole of `cistron train`, reading the corpus itself: a step is from one fetch to the next, one included."""
    from cistron.trainer.config import load_config
    from cistron.trainer.processes import StopRequest, join
    from cistron.trainer.train import Trainer
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    config, _ = load_config(
        ["--config", str(repeats.folder / "job.toml"), "--job.dump_folder", str(repeats.folder / "cistron")]
    )
    trainer = Trainer(config, join(config), StopRequest())
    set_model_state_dict(trainer.model, repeats.weights(), options=StateDictOptions(full_state_dict=True))
    fetch, optimize, losses = trainer.fetch, trainer.optimize, []

    def fetch_interleaved() -> Any:
        repeats.wait()
        return fetch()

    def recorded(*arguments: Any) -> Any:
        losses[:] = [optimize(*arguments)]
        return losses[0]

    trainer.fetch, trainer.optimize = fetch_interleaved, recorded
    repeats.begin(trainer.model, lambda: float(losses[0].loss))
    trainer.train()


def bare_loop(repeats: Repeats) -> None:
    """What a tutorial would write around the same decoder: no FSDP, no counters, no checks; autocast for bfloat16."""
    from cistron.models.attention import DocumentMask, choose_executor
    from cistron.models.config import DecoderConfig
    from cistron.models.decoder import Decoder
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    job, device = repeats.job, repeats.device
    model = Decoder(DecoderConfig(**job["shape"]))
    model.load_state_dict(repeats.weights())
    model.to(device)
    if job["activation_checkpoint"] == "full":
        for name, block in model.layers.named_children():
            model.layers.register_module(name, checkpoint_wrapper(block))
    if job["compile"]:
        for block in model.layers.children():
            block.compile()
    half = job["dtype"] != "float32"
    executor, _ = choose_executor(device, half=half, compiled=job["compile"], spread=False)
    mask = DocumentMask(eos_id=0, pad_id=1, executor=executor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job["lr"], betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    losses = [torch.zeros(())]
    repeats.begin(model, lambda: float(losses[0]))
    for rows in repeats.rows():
        tokens, labels, positions = (rows[key].to(device) for key in ("tokens", "labels", "positions"))
        with torch.autocast(device.type, torch.bfloat16, enabled=job["dtype"] == "bfloat16"):
            logits = model(tokens, positions, mask.build(rows["sequence_ids"], device))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses[:] = [loss.detach()]


def hugging_face(repeats: Repeats) -> None:
    """`transformers.Trainer` around its Llama, which builds the document mask from positions where none is given."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # a CUDA build beside a CPU torch does not load: transformers shall not see it
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

    job, shape = repeats.job, repeats.job["shape"]
    assert not shape["qk_norm"], "Llama has no norms on queries and keys"
    theta = shape["rope"]["theta"]
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["dim"],
        intermediate_size=shape["hidden_dim"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        head_dim=shape["head_dim"],
        rms_norm_eps=shape["norm_eps"],
        rope_theta=theta,  # transformers 4; 5 reads the next line
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=job["seq_len"],
        tie_word_embeddings=shape["tie_embeddings"],
        use_cache=False,
    )
    attention = "flex_attention" if repeats.device.type == "cuda" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    model.load_state_dict(repeats.weights(hugging_face=True))

    class OwnRows(Trainer):
        """The benchmark's rows as the data loader; they are not copied, split or shuffled."""

        last_loss = torch.zeros(())

        def get_train_dataloader(self) -> Any:
            return Batches(repeats)

        def training_step(self, *arguments: Any, **more: Any) -> torch.Tensor:
            self.last_loss = super().training_step(*arguments, **more)
            return self.last_loss

    class Batches:
        """An endless epoch of model inputs. Labels are shifted already, which is told by their second name."""

        def __init__(self, repeats: Repeats) -> None:
            self.repeats = repeats

        def __len__(self) -> int:
            return 1_000_000

        def __iter__(self) -> Iterator[Rows]:
            for rows in self.repeats.rows():
                labels = rows["labels"]
                yield {
                    "input_ids": rows["tokens"],
                    "position_ids": rows["positions"].long(),
                    "labels": labels,
                    "shift_labels": labels,
                }

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=job["rows"],
            max_steps=1_000_000,
            learning_rate=job["lr"],
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=repeats.device.type == "cpu",
            bf16=job["dtype"] == "bfloat16",
            gradient_checkpointing=job["activation_checkpoint"] == "full",
            torch_compile=job["compile"],
        )
        trainer = OwnRows(model, arguments, train_dataset=[])
        repeats.begin(model, lambda: float(trainer.last_loss))
        trainer.train()


CONTENDERS = {"cistron": cistron, "bare": bare_loop, "hugging_face": hugging_face}

if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](Repeats(Path(sys.argv[2])))
