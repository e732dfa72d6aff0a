"""Checkpoints, loaded with no weight missing, none left over and none of another shape."""

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
"""What torch, transformers and safetensors raise for a file that is cut, or says what its format does not know."""


def load_strictly(
    auto: Any,
    folder: Path,
    name: str,
    optional: Iterable[str] = (),
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> PreTrainedModel:
    """A model from its folder.

    Args:
        auto: the Auto class of transformers that builds it.
        name: of the weights, for the message.
        optional: regular expressions of names that may be missing or left over, as nothing here uses them.
        settings: handed to `from_pretrained`.

    Raises:
        WeightsError: a file of the folder cannot be read, or the weights do not fit the architecture that it describes.
    """
    with readable(name), _no_progress_bar():
        model, loading = auto.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below with the rest, in place of an exception of its own
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
    """While a checkpoint's own files are read: whatever is wrong with one of them ends in one sentence.

    Raises:
        WeightsError: in place of what transformers and safetensors raise for a damaged or incomplete folder.
    """
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"the weights {name!r} cannot be read ({reason:.300}); take the checkpoint from where it was published"
        ) from error


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint in one file, which some put under the name "model" in it (LAVIS).

    A .pth or .bin file is read without running what it may hold beside.

    Raises:
        WeightsError: it cannot be read, or is no table of tensors.
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
        raise WeightsError(f"the weights {name!r} ({path}) are no table of tensors, as a checkpoint is")
    return state


def _without(names: Iterable[str], optional: Iterable[str]) -> set[str]:
    return {name for name in names if not any(re.fullmatch(each, name) for each in optional)}


def check_state_dict(name: str, kind: str, *, missing: Set[str], unexpected: Set[str], reshaped: Set[str]) -> None:
    """Ends loading where any weight does not fit.

    Args:
        name: of the weights.
        kind: what they should fit, with its article.
        missing, unexpected, reshaped: keys that are not there, that nothing takes, and that have another shape.

    Raises:
        WeightsError: there is one; names some of each.
    """
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    found = "; ".join(f"{problem}: {', '.join(sorted(keys)[:4])}" for problem, keys in problems.items() if keys)
    if found:
        raise WeightsError(
            f"the weights {name!r} do not fit {kind} exactly: {found}; take the checkpoint from where it was published"
        )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading takes a fraction of a second, and its bar would run through the harness's own."""
    was_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            transformers_logging.enable_progress_bar()
