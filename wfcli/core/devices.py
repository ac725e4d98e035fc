"""Where tensors live and in which precision products are taken."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from wfcli.errors import WfError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """Turn ``cpu``, ``cuda`` or ``auto`` into a device.

    Raises:
        WfError: ``cuda`` was asked for and there is none, or the name is unknown.
    """
    if name not in ("cpu", "cuda", "auto"):
        raise WfError(f"unknown device {name!r}", hint="use cpu, cuda or auto")
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise WfError("--device cuda: PyTorch sees no CUDA device here", hint="use --device auto or --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 products are faster than float32 ones there (any GPU; CPUs with AVX512-BF16 or AMX)."""
    import torch

    if device.type != "cpu":
        return True
    if hasattr(torch.cpu, "get_capabilities"):
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("amx"))
    # Older versions have some of these. Not mkldnn's own check: it passes any AVX512, which only emulates bfloat16.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


def training_autocast(device: torch.device, model: torch.nn.Module) -> AbstractContextManager[Any]:
    """Return the autocast context for training `model`: bfloat16 where that is faster, else none.

    On CPUs only convolutional nets take it: narrow Transformers get slower there.
    """
    import torch

    convolutional = not any(isinstance(m, torch.nn.LayerNorm) for m in model.modules())
    if has_fast_bfloat16(device) and (device.type != "cpu" or convolutional):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
