"""The device on which models run."""

import torch


def default_device() -> torch.device:
    """CUDA if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: torch.device) -> None:
    """Waits for queued CUDA kernels."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
