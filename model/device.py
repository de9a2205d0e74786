"""Which device, and which precision it multiplies fast: decided at run time, from what is there."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name such as cuda:1; auto is CUDA where there is one, else the CPU.

    Raises ValueError for a CUDA device on a machine, or with a build of PyTorch, that has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is not one of auto, cpu, cuda, cuda:N: {name}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"this PyTorch ({torch.__version__}) finds no CUDA device, use --device cpu: {name}")
    return device


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of weights and activations; auto is bf16 where it is native, fp16 on older GPUs, else fp32.

    Raises ValueError for fp16 on a CPU, which multiplies it slowly or not at all.
    """
    if name == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 is for GPUs, a CPU takes bf16 or fp32: fp16")
    if name != "auto":
        return PRECISIONS[name]
    if has_native_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32
