"""Strict loading of checkpoints: no missing or unexpected keys and no mismatched shapes."""

import pickle
import re
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from harness.errors import WeightsError

UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
"""Errors of torch, transformers and safetensors for truncated or malformed files."""


def load_strictly(
    auto: Any,
    folder: Path,
    name: str,
    optional: Iterable[str] = (),
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> PreTrainedModel:
    """Load a model from its folder.

    Args:
        auto: model class or Auto class of transformers.
        name: of the weights, for error messages.
        optional: regular expressions of keys that may be missing or unexpected because they are not used.
        settings: passed to `from_pretrained`.

    Raises:
        WeightsError: a file of the folder cannot be read, or the weights do not match the folder's config.json.
    """
    with readable(name), _no_progress_bar():
        model, loading = auto.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below together with missing and unexpected keys
            **settings,
        )
    check_state_dict(
        name,
        f"a {model.config.model_type}",
        missing=_without(loading["missing_keys"], optional),
        unexpected=_without(loading["unexpected_keys"], optional),
        reshaped={key[0] for key in loading["mismatched_keys"]},
    )
    return model


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Context in which a checkpoint's files are loaded; errors of the libraries become WeightsError.

    Args:
        name: of the weights, for error messages.

    Raises:
        WeightsError: a file is damaged or missing.
    """
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"the weights {name!r} cannot be read ({reason:.300}); download the published checkpoint again"
        ) from error


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """Load the state dict of a single-file checkpoint, which may be nested under the key "model" (LAVIS).

    A .pth or .bin file is loaded with `weights_only=True`, so it cannot run code.

    Raises:
        WeightsError: the file cannot be read, or it holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"the weights {name!r} ({path}) cannot be read: {reason}") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"the weights {name!r} ({path}) hold no state dict; use a checkpoint file")
    return state


def _without(names: Iterable[str], optional: Iterable[str]) -> set[str]:
    return {name for name in names if not any(re.fullmatch(each, name) for each in optional)}


def check_state_dict(name: str, kind: str, *, missing: Set[str], unexpected: Set[str], reshaped: Set[str]) -> None:
    """Raise if any key is missing, unexpected or of another shape.

    Args:
        name: of the weights.
        kind: the model that they should fit, with its article, for the message.

    Raises:
        WeightsError: names some keys of each kind.
    """
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    found = "; ".join(f"{problem}: {', '.join(sorted(keys)[:4])}" for problem, keys in problems.items() if keys)
    if found:
        raise WeightsError(
            f"the weights {name!r} do not match {kind}: {found}; download the published checkpoint again"
        )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide transformers' progress bar, which would break the harness's own."""
    was_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            transformers_logging.enable_progress_bar()
