"""torch.compile of the blocks and of the loss, all before the first step, so that none is compiled later.

Blocks are compiled one by one: they are alike, so that one compilation serves all, and FSDP2's hooks stay between them.
In the packed layout every batch has one shape. In the padded layout widths differ, and the compiler learns which sizes
vary when it meets a second one. It is shown some before training: otherwise that might happen at any later step.
"""

from collections.abc import Callable

import numpy as np

from ...datasets.loading import Batch
from ...datasets.rows import lay_out
from ...models.decoder import Decoder
from .inputs import Inputs


def apply_compile(model: Decoder, *, one_width: bool) -> None:
    """Compile every block of `model`, and its loss between matrix products. `one_width`: all rows are as long."""
    for block in model.layers.children():
        block.compile(dynamic=False if one_width else None, fullgraph=True)
    model.compile_loss = True


def compile_for_all_widths(model: Decoder, stage: Callable[[Batch], Inputs], *, rows: int, step: int, seq_len: int) -> None:
    """Go forward and backward with rows of several widths, so that compiled blocks take any. Every rank must call it.

    The narrowest width is compiled for itself (its 1 x 1 blocks of a mask broadcast), the next with sizes that vary;
    the widest may be no multiple of the others' step, and tells at once whether it fits in memory.

    Args:
        model: laid out and initialised; its gradients are lost.
        stage: takes a batch to the device.
        rows: in a micro-batch.
        step: widths are multiples of it.
        seq_len: the largest width.
    """
    for width in sorted({min(width, seq_len) for width in (step, 2 * step, seq_len)}):
        planes = lay_out([[np.zeros(width, dtype=np.int64)]] * rows, width)
        planes = planes._replace(labels=planes.tokens, values=planes.tokens.astype(np.float32))  # a head reads values
        stage(Batch.of(planes, rows=[], sources=[], state=None)).losses(model).sum().backward()
    model.zero_grad()
