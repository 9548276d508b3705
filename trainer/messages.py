"""What a run says to people before its first step and after its last one, on rank 0."""

from ..datasets.loading import Batch, Loader
from ..datasets.tokenizers import Tokenizer
from ..models.config import DecoderConfig
from ..models.decoder import Decoder
from ..models.errors import ModelError
from .build import attention_said
from .config import JobConfig
from .estimates import sizes_of
from .inference import sample_tokens, text_behind
from .parallel import without_context_parallel
from .processes import World, device_remarks, global_batch_size

SAMPLE_TOKENS = 120


def introduction(
    config: JobConfig, world: World, decoder: DecoderConfig, eos_id: int, loader: Loader, step: int, micro_batch_size: int
) -> list[str]:
    """Say what is about to be trained.

    Args:
        config: of the job.
        world: this process among the others.
        decoder: the model's shape.
        eos_id: that ends documents.
        loader: of the data.
        step: optimizer steps done.
        micro_batch_size: rows in one forward pass of one rank.
    """
    layout, rows = world.layout, global_batch_size(config, world.layout)
    executor, why = attention_said(config, world.device)
    micro_batches = rows // layout.data_parallel // micro_batch_size
    return [
        *config.remarks(step),
        *device_remarks(world.device),
        *(remark for source in loader.sources for remark in source.remarks()),
        *([f"data.lanes: {loader.lanes}, chosen; a resume keeps it"] if config.data.lanes is None else []),
        f"{config.model.preset}: {sizes_of(config, decoder)}, {executor} attention ({why}) over documents ending in "
        f"eos {eos_id}; {rows} rows x {config.training.seq_len} tokens a step on {layout.world_size} process(es) "
        f"({world.device.type}): {layout}, {micro_batches} micro-batch(es) of {micro_batch_size} rows",
    ]


def prompt_of(batch: Batch, eos_id: int) -> list[int]:
    """Return how the first document of a batch's first row begins, which a sample continues."""
    first: list[int] = batch.tokens[0, :16][batch.sequence_ids[0, :16] == 0].tolist()
    return first[:-1] if first[-1:] == [eos_id] else first


def sample_text(model: Decoder, tokenizer: Tokenizer, prompt: list[int], world: World) -> str:
    """Continue a prompt with what the model has learnt; every rank must call it."""
    try:
        with without_context_parallel(model):
            new = sample_tokens(
                model, tokenizer, prompt, device=world.device, multiple_of=world.layout.tp, max_new_tokens=SAMPLE_TOKENS
            )
    except ModelError as error:
        return f"warning: a sample: {error}"
    return f"\nA sample, continuing {tokenizer.decode(prompt)!r}:\n{text_behind(tokenizer, prompt, new)}\n"
