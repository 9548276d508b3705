"""Whose kernels compute FlexAttention: torch's own in Triton, or FlashAttention 4's, which the same call reaches.

| | `triton` | `flash` |
|---|---|---|
| `kernel_options` of the call | none: torch takes Triton by itself | `"BACKEND": "FLASH"` |
| GPUs | all of CUDA | Hopper, and Blackwell of data centers (sm_100, sm_103, sm_110) |
| package | none | flash-attn-4, imported as `flash_attn.cute` |
| types | any | float16, bfloat16 |
| head_dim | any | at most 128, in eights: longer keys have no backward pass over blocks of 128 |
| blocks of queries | 128 | 128 on Hopper, 256 on Blackwell, where a thread block has two tiles of 128 |
| gradient of the log-sum-exp | yes | no, so no position maps, whose two passes it joins |
| backward pass | sums in a fixed order | adds to dq as blocks are done: the last bits differ between two runs |

After torch 2.11 and 2.13 (`torch/_inductor/kernel/flex/`) and flash-attn-4 4.0.0b36 (`flash_attn/cute/interface.py`).
On Hopper its gradients under masks by blocks were reported to be wrong (flash-attention issue 2623), or wrong in one of
100 to 1,000 backward passes (pull request 2756, which mends it), so there it has to be asked for.
"""

from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch

from ..config import AttentionConfig, Executor, FlexBackend

FLASH_OPTIONS = {"BACKEND": "FLASH"}
HOPPER, BLACKWELL = 9, (10, 11)  # major numbers of the compute capability; GeForce's Blackwell is 12
LARGEST_HEAD = 128


class FlashFacts(NamedTuple):
    """What decides whether FlashAttention 4 can train.

    Attributes:
        capability: of the GPU; None: it is not here to be asked, so neither it nor the package is a reason.
        installed: whether the package is; where the GPU is not here, that is not asked.
        half: whether attention computes in float16 or bfloat16.
        head_dim: width of a head.
        attention: the window or position map.
    """

    capability: tuple[int, int] | None
    installed: bool
    half: bool
    head_dim: int
    attention: AttentionConfig

    @property
    def queries(self) -> int:
        """Queries in a block of its masks."""
        return 128 if self.capability is not None and self.capability[0] == HOPPER else 256


def flash_facts(device: torch.device, *, half: bool, head_dim: int, attention: AttentionConfig) -> FlashFacts:
    """Return what a device and this installation have for attention of this kind, see `FlashFacts`."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return FlashFacts(None, False, half, head_dim, attention)
    return FlashFacts(torch.cuda.get_device_capability(device), has_flash_attention_4(), half, head_dim, attention)


def has_flash_attention_4() -> bool:
    """Return whether the package is installed, asked as torch does: FlashAttention 2 has the same parent."""
    try:
        return find_spec("flash_attn.cute") is not None  # imports the parent
    except ImportError:  # there is none, or it does not load
        return False


def flash_obstacles(facts: FlashFacts) -> list[str]:
    """Return why FlashAttention 4 cannot train, each reason a sentence without its end."""
    wrong = []
    if facts.capability is not None and facts.capability[0] not in (HOPPER, *BLACKWELL):
        major, minor = facts.capability
        wrong.append(f"FlashAttention 4 trains on sm_90 and sm_100 to sm_110, and this GPU is sm_{major}{minor}")
    elif facts.capability is not None and not facts.installed:
        wrong.append("the package flash-attn-4 is not installed")
    if not facts.half:
        wrong.append("FlashAttention 4 computes in float16 or bfloat16, not in float32")
    if facts.head_dim > LARGEST_HEAD or facts.head_dim % 8:
        wrong.append(f"FlashAttention 4 takes a head_dim of at most {LARGEST_HEAD} in eights, and it is {facts.head_dim}")
    if facts.attention.position_map != "none":
        joined = f"the two passes of {facts.attention.named}"
        wrong.append(f"FlashAttention 4 has no gradient of the log-sum-exp, which joins {joined}")
    return wrong


def choose_flex_backend(facts: FlashFacts) -> tuple[FlexBackend, str]:
    """Return the kernels that train fastest of those that are trusted, and why."""
    if facts.capability is None:
        return "triton", "no GPU is here to be asked for more"
    if facts.capability[0] == HOPPER:
        return "triton", "gradients of FlashAttention 4 were reported to be wrong on Hopper"
    if obstacles := flash_obstacles(facts):
        return "triton", "; ".join(obstacles)
    return "flash", "FlashAttention 4 is installed, and this is a Blackwell GPU"


def flex_backend_complaints(backend: Literal["auto", FlexBackend], executor: Executor, facts: FlashFacts) -> list[str]:
    """Return why `model.attention.flex_backend` cannot be `backend` where `executor` is taken, a line each."""
    if backend == "auto":
        return []
    key = f'model.attention.flex_backend is "{backend}"'
    if executor != "flex":
        return [f'{key}, and {executor} computes attention, not FlexAttention: leave it out, or set executor = "flex"']
    return [f'{key}: {obstacle}; use "auto"' for obstacle in (flash_obstacles(facts) if backend == "flash" else [])]
