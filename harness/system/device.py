"""The device that everything runs on."""

import torch


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: torch.device) -> None:
    """Wait for what was queued on an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
