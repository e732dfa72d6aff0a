"""The precision of a model, and the meaning of `auto`."""

import contextlib

import torch


def resolve_precision(precision: str, device: torch.device) -> str:
    """`float32` or `bfloat16`; `auto` is bfloat16 if the hardware has native bfloat16 matrix products, else float32.

    On processors with only AVX2, bfloat16 is emulated and about 90 times slower than float32.
    """
    if precision != "auto":
        return precision
    return "bfloat16" if has_native_bfloat16(device) else "float32"


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context manager that runs a model in this precision."""
    if resolve_precision(precision, device) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
