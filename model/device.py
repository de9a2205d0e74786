"""Which device, and which precision it multiplies fast: decided at run time, from what is there."""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from functools import cache

import torch

# Type of the weights; in int8 those of the blocks are quantized from fp32 (model/cpu.py).
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_THRESHOLD = 32 * 2**20  # bytes that glibc allows
MEASURED_SHAPE, MEASURED_TIMES, CLEARLY = (256, 768, 768), 30, 1.3  # the best time counts: others use the cores too


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


def training_precision(name: str, device: torch.device) -> str:
    """What a training multiplies matrices in, bf16 or fp32: as a service would, but never in fp16 or int8."""
    return "bf16" if choose_precision(name, device) == "bf16" else "fp32"


def has_int8() -> bool:
    """Whether the CPU multiplies bytes (VNNI or AMX), without which int8 is slower than fp32, or inexact."""
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported())


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of a name; auto is the fastest that costs no accuracy.

    On a GPU bf16 where it is native, else fp16; on a CPU bf16 where a product takes less time in it, else fp32.
    Raises ValueError for fp16 on a CPU, which multiplies it slowly or not at all, and for int8 where it is not
    faster: on a GPU, or a CPU that does not multiply bytes.
    """
    is_cpu = device.type == "cpu"
    if name == "fp16" and is_cpu:
        raise ValueError("precision fp16 is for GPUs, a CPU takes bf16, fp32 or int8: fp16")
    if name == "int8" and not (is_cpu and has_int8()):
        raise ValueError("precision int8 is for CPUs that multiply bytes (AVX512-VNNI, AMX), use auto: int8")
    if name != "auto":
        return name
    if is_cpu:
        return "bf16" if has_native_bf16(device) and is_faster_in_bf16() else "fp32"
    return "bf16" if has_native_bf16(device) else "fp16"


@cache
def is_faster_in_bf16() -> bool:
    """Whether a matrix product of a usual size takes clearly less time in bf16 than in fp32 here, measured once.

    Clearly, so that replicas on one kind of machine choose alike.
    """
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(MEASURED_TIMES):
        for dtype in seconds:
            x, weight = torch.ones(MEASURED_SHAPE[:2], dtype=dtype), torch.ones(MEASURED_SHAPE[1:], dtype=dtype)
            start = time.perf_counter()
            x @ weight
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] * CLEARLY < seconds[torch.float32]


def keep_freed_memory() -> None:
    """Let glibc keep what a pass frees for the next one, instead of handing it back and faulting it in again.

    Passes of thousands of tokens take up to a third less time on a CPU. Does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
