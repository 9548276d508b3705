"""torchtitan 0.3 as a contender of `train_speed.py`: its own Trainer, model, optimizer and loss, fed with given rows.

It imports what only torch 2.12 and later have, and `datasets`, for parts that this job does not use: `complete_imports`
puts empty ones there. Beside torch 2.11 its loss in chunks reads freed memory, on any device: `gather_norm_again`.
On CUDA nothing else of it is replaced but the data loader and the tokenizer. On a CPU it does not start as released,
for these reasons, each met by a few lines of `run_on_cpu`:

| what stops it | what is put in its place |
|---|---|
| expert-parallel kernels import triton, whatever the model | an empty module, where triton is not installed |
| `tools.utils.device_module` is CUDA where no accelerator is found | the few calls that the trainer makes, for a CPU |
| FlexAttention has no backward on a CPU | `scaled_dot_product_attention` over the same document mask, dense |
| `torch.distributed.set_timeout`, and barriers with device ids, are not gloo's | the time-outs stay as they were |
"""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.distributed.fsdp
import torch.nn.functional as F
from interleaved import Repeats
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState
from torch.distributed.tensor import DTensor


class Cpu:
    """What torchtitan asks of `torch.cuda`, answered for a CPU."""

    set_device = staticmethod(torch.cpu.set_device)
    synchronize = staticmethod(torch.cpu.synchronize)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    get_device_name = staticmethod(lambda device: "CPU")
    get_device_properties = staticmethod(lambda device: SimpleNamespace(total_memory=1))
    memory_stats = staticmethod(lambda device: {})
    reset_peak_memory_stats = staticmethod(lambda: None)
    empty_cache = staticmethod(lambda: None)


def complete_imports() -> None:
    """Stand in for what torchtitan imports and this job does not use. To be called before anything of it is imported.

    `DataParallelMeshDims`, which torch 2.11 lacks, names the axes of a mesh that spans all kinds of parallelism.
    Without such a mesh torchtitan makes none. `datasets` feeds its own loaders, which are replaced.
    """
    if not hasattr(torch.distributed.fsdp, "DataParallelMeshDims"):
        torch.distributed.fsdp.DataParallelMeshDims = type("DataParallelMeshDims", (), {})  # type: ignore[attr-defined]
    if importlib.util.find_spec("datasets") is None:
        sys.modules |= {name: MagicMock() for name in ("datasets", "datasets.distributed")}


def gather_norm_again() -> None:
    """Gather the last norm's weight before its backward pass, where torch does not. To be called before training.

    torchtitan's FSDP has one group for norm and output. Its loss in chunks computes the output's backward pass first,
    then frees the group's parameters. torch 2.13 gathers them again before the norm's backward pass
    (`FSDPState._force_complete_incomplete_states`). torch 2.11 has a hook on the output alone, so the norm's backward
    pass reads memory that is freed: a segmentation fault on a CPU.
    """
    if hasattr(FSDPState, "_force_complete_incomplete_states"):
        return
    from torchtitan.components.loss import ChunkedLossWrapper

    in_chunks = ChunkedLossWrapper.__call__

    def call(self: Any, pred: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        def gather(gradient: torch.Tensor) -> None:
            self.lm_head.unshard()

        if pred.requires_grad:
            pred.register_hook(gather)
        return in_chunks(self, pred, *arguments, **more)

    ChunkedLossWrapper.__call__ = call


def run_on_cpu() -> None:
    """Replace what keeps torchtitan from training on a CPU. To be called before anything else of it is imported."""
    if importlib.util.find_spec("triton") is None:
        sys.modules["torchtitan.distributed.minimal_async_ep.kernels"] = MagicMock()
    from torchtitan.tools import utils

    utils.device_type, utils.device_module = "cpu", Cpu

    from torchtitan.distributed import utils as distributed
    from torchtitan.models.common.attention import FlexAttention
    from torchtitan.models.common.decoder import Decoder

    def dense_mask(self: Any, positions: torch.Tensor, attention: Any) -> torch.Tensor:
        documents = (positions == 0).cumsum(1)
        return (documents[:, None, :, None] == documents[:, None, None, :]).tril()

    def attend(self: Any, q_BLNH: Any, k_BLNH: Any, v_BLNH: Any, *, attention_masks: Any, **more: Any) -> Any:
        q, k, v = q_BLNH.transpose(1, 2), k_BLNH.transpose(1, 2), v_BLNH.transpose(1, 2)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attention_masks, scale=more.get("scale"), enable_gqa=more.get("enable_gqa", False)
        )
        return out.transpose(1, 2)

    Decoder._create_flex_attention_mask_for_document = dense_mask
    FlexAttention.forward = attend
    distributed.set_pg_timeouts = lambda timeout, parallel_dims: None


def trainer_config(repeats: Repeats, folder: str) -> Any:
    """A torchtitan configuration of the job."""
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
    from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
    from torchtitan.config import CompileConfig, Configurable, TrainingConfig
    from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.llama3 import (
        _EMBEDDING_INIT,
        _EMBEDDING_SKIP_INIT,
        _NORM_INIT,
        Llama3Model,
        _build_llama3_layers,
        _output_linear_init,
        model_registry,
    )
    from torchtitan.trainer import Trainer

    class GivenRows(BaseDataLoader):
        """The benchmark's rows. A document is known by its positions, which begin again at 0."""

        @dataclass(kw_only=True, slots=True)
        class Config(BaseDataLoader.Config):
            """Without keys of its own."""

        def __init__(self, config: Config, **ignored: Any) -> None:
            """Accept what torchtitan hands in: there is nothing to prepare."""

        def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
            """Tokens with positions, and labels."""
            for rows in repeats.rows():
                yield {"input": rows["tokens"], "positions": rows["positions"]}, rows["labels"]

    class NoTokenizer(Configurable):
        """Stands in for a tokenizer: the rows hold ids already."""

        @dataclass(kw_only=True, slots=True)
        class Config(Configurable.Config):
            """Without keys of its own."""

        def __init__(self, config: Config, **ignored: Any) -> None:
            """Accept what torchtitan hands in: there is nothing to read."""

    job, shape = repeats.job, repeats.job["shape"]
    assert shape["head_dim"] * shape["n_heads"] == shape["dim"], "torchtitan's Llama has heads that fill its width"
    dim, vocabulary, tied = shape["dim"], shape["vocab_size"], shape["tie_embeddings"]
    rope = ComplexRoPE.Config(dim=shape["head_dim"], max_seq_len=job["seq_len"], theta=shape["rope"]["theta"], scaling="none")
    layers = _build_llama3_layers(
        n_layers=shape["n_layers"],
        dim=dim,
        n_heads=shape["n_heads"],
        n_kv_heads=shape["n_kv_heads"],
        hidden_dim=shape["hidden_dim"],
        rope=rope,
        attn_backend="flex",
    )
    model = Llama3Model.Config(
        dim=dim,
        vocab_size=vocabulary,
        enable_weight_tying=tied,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocabulary, embedding_dim=dim, param_init=_EMBEDDING_SKIP_INIT if tied else _EMBEDDING_INIT
        ),
        norm=RMSNorm.Config(normalized_shape=dim, param_init=_NORM_INIT),
        lm_head=Linear.Config(in_features=dim, out_features=vocabulary, param_init=_output_linear_init(dim)),
        layers=layers,
    )
    checkpointing = {"none": None, "full": FullAC.Config(), "selective": SelectiveAC.Config()}
    return Trainer.Config(
        model_spec=replace(model_registry("debugmodel"), model=model),
        dump_folder=folder,
        tokenizer=NoTokenizer.Config(),
        dataloader=GivenRows.Config(),
        loss=ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size=vocabulary)),
        optimizer=default_adamw(lr=job["lr"], weight_decay=0.0),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=0, decay_ratio=0.0),
        training=TrainingConfig(
            local_batch_size=job["rows"],
            seq_len=job["seq_len"],
            steps=1_000_000,
            mixed_precision_param=job["dtype"],
            disable_cuda_graphs=job["device"] == "cpu",
        ),
        compile=CompileConfig(enable=job["compile"]),
        activation_checkpoint=checkpointing[job["activation_checkpoint"]],
    )


def record_losses(trainer: Any) -> Callable[[], float]:
    """Keep the tensor of each step's loss, which torchtitan itself reads only where it logs; read on call."""
    step, losses = trainer.forward_backward_step, []

    def recorded(**arguments: Any) -> torch.Tensor:
        losses[:] = [step(**arguments)]
        return losses[0]

    trainer.forward_backward_step = recorded
    return lambda: float(losses[0])


def load(model: torch.nn.Module, spec: Any, repeats: Repeats) -> None:
    """Give a model laid out over one process the weights that all begin with.

    Through a plain model of the same configuration, since what fuses wq, wk and wv would mix plain tensors with
    DTensors.
    """
    plain = spec.model.build()
    plain.load_state_dict(spec.state_dict_adapter(spec.model, None).from_hf(repeats.weights(hugging_face=True)))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), plain.parameters(), strict=True):
            (parameter.to_local() if isinstance(parameter, DTensor) else parameter).copy_(value)


def main(folder: Path) -> None:
    """Train until the benchmark is over."""
    repeats = Repeats(folder)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    complete_imports()
    if repeats.device.type == "cpu":
        run_on_cpu()
    gather_norm_again()
    with tempfile.TemporaryDirectory() as dump_folder:
        config = trainer_config(repeats, dump_folder)
        trainer = config.build()
        model = trainer.model_parts[0]
        load(model, config.model_spec, repeats)
        repeats.begin(model, record_losses(trainer))
        trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
