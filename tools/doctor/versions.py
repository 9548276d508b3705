"""Part `versions`: what is installed, whether pyproject allows it, and which kernels that opens."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement
from torch.nn.attention import list_flash_attention_impls

from ...models.attention import choose_flex_backend, flash_facts, has_flash_attention_3, has_flash_attention_4
from ...models.config import FULL_ATTENTION
from ...trainer.processes import NVIDIA_DRIVER
from .examination import Examination
from .report import Verdict


def examine(e: Examination) -> None:
    """Compare what is installed with what pyproject asks for."""
    e.find(f"Python {platform.python_version()}", "ok" if sys.version_info >= (3, 10) else "wrong", compared_with=">= 3.10")
    for requirement in requirements():
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        optional = requirement.marker is not None and requirement.marker.evaluate({"extra": "float8"}) and not needed
        if needed or optional:
            package(e, requirement, optional)
    triton = version_of("triton")
    kernels = f"compiled kernels of a GPU; {here(e)}"
    e.find(f"triton {triton or ''}".strip(), "ok" if triton else "wrong" if e.on_gpu else "not here", compared_with=kernels)
    flash = ", ".join(list_flash_attention_impls())
    three = has_flash_attention_3(e.device)
    e.find("FlashAttention 3", "ok" if three else "not here", compared_with="a Hopper GPU and flash_attn_interface")
    four = has_flash_attention_4() and "FA4" in flash
    kernels = f"package flash_attn.cute; torch knows {flash or 'none'}"
    e.find("FlashAttention 4", "ok" if four else "not here", compared_with=kernels)
    if not e.on_gpu:
        e.find("CUDA", "not here", compared_with=f"torch {torch.__version__}, made for CUDA {torch.version.cuda or '(none)'}")
        return
    major, minor = torch.cuda.get_device_capability(e.device)
    backend, why = choose_flex_backend(flash_facts(e.device, half=True, head_dim=128, attention=FULL_ATTENTION))
    e.find(f"flex by {backend}", "ok", compared_with=f'model.attention.flex_backend = "auto" in 16 bits: {why}')
    name = f"{torch.cuda.get_device_name(e.device)}, sm_{major}{minor}"
    e.find(name, "ok" if major >= 8 else "slow", compared_with="sm_80 or later computes in bfloat16")
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    e.find(f"CUDA {torch.version.cuda}, NCCL {nccl}, driver {driver()}", "ok", compared_with="a kernel ran in this process")


def requirements() -> list[Requirement]:
    """Return what the installed package asks for; without an installation, torch alone."""
    try:
        return [Requirement(line) for line in requires("cistron") or []]
    except PackageNotFoundError:
        return [Requirement("torch>=2.11,<2.14")]


def package(e: Examination, requirement: Requirement, optional: bool) -> None:
    """Compare one package with its requirement."""
    found = version_of(requirement.name)
    asked = str(requirement.specifier) or "any version"
    if found is None:
        verdict: Verdict = "not here" if optional else "wrong"
        e.find(requirement.name, verdict, compared_with=f"{asked}{', for [float8]' if optional else ', is not installed'}")
        return
    fits = requirement.specifier.contains(found.split("+")[0], prereleases=True)
    e.find(f"{requirement.name} {found}", "ok" if fits else "wrong", compared_with=asked)


def version_of(name: str) -> str | None:
    """Return the installed version of a package; None: it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def here(e: Examination) -> str:
    """Return what the device is, in a word."""
    return "a GPU is here" if e.on_gpu else "no GPU is here"


def driver() -> str:
    """Return the version of the NVIDIA driver, as Linux tells it."""
    if not NVIDIA_DRIVER.is_file():
        return "unknown"
    words = NVIDIA_DRIVER.read_text().split("\n")[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")
