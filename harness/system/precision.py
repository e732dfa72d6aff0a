"""The precision in which a model runs, and the choice that `auto` stands for."""

import contextlib

import torch


def resolve_precision(precision: str, device: torch.device) -> str:
    """`float32` or `bfloat16`; `auto` is bfloat16 where the hardware multiplies it natively, else float32.

    AVX2 processors emulate bfloat16 some ninety times slower than float32.
    """
    if precision != "auto":
        return precision
    return "bfloat16" if has_native_bfloat16(device) else "float32"


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for matrix products in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which a model runs in this precision."""
    if resolve_precision(precision, device) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
