"""Optimizers and metric sinks by name. The rooms that hold them load torch, and a TOML is read without it.

The built-in parts are announced by the place where they are, and imported when a run uses them. A plug-in adds its own:

    from cistron.trainer.config import SINKS
    from cistron.trainer.metrics import Sink

    @SINKS.add("csv", says="a line per logged step")
    class CsvSink(Sink): ...
"""

from typing import Any

from ...base import Registry

OPTIMIZERS: Registry[Any] = Registry("optimizer")  # classes derived from trainer.optim.Optimizer
OPTIMIZERS.announce(
    "AdamW", says="adaptive moments, with weight decay apart from them", where="cistron.trainer.optim.adamw:AdamW"
)
OPTIMIZERS.announce(
    "Muon",
    says="orthogonalised momentum for the matrices of the blocks, at AdamW's learning rate; AdamW for all the rest",
    where="cistron.trainer.optim.muon:Muon",
)

SINKS: Registry[Any] = Registry("metric sink")  # classes derived from trainer.metrics.Sink
SINKS.announce("jsonl", says="metrics.jsonl and its like, always written", where="cistron.trainer.metrics.sinks:JsonLines")
SINKS.announce("console", says="a line on stdout, always printed", where="cistron.trainer.metrics.sinks:ConsoleLines")
SINKS.announce(
    "tensorboard", says="TensorBoard files, as metrics.enable_tensorboard", where="cistron.trainer.metrics.sinks:TensorBoard"
)
SINKS.announce(
    "wandb", says="Weights & Biases, as metrics.enable_wandb", where="cistron.trainer.metrics.sinks:WeightsAndBiases"
)
