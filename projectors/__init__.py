"""Visual projectors: one file, one projector, one name in YAML. Knows torch; knows nothing of the harness."""

from typing import TYPE_CHECKING

from projectors.errors import IncompatibleError, ProjectorError
from projectors.registry import get, names, register

if TYPE_CHECKING:
    from projectors.contract import REFERENCE_DIMS, Dims, Projector, ProjectorConfig, VisualFeatures, VisualTokens

__all__ = [
    "REFERENCE_DIMS",
    "Dims",
    "IncompatibleError",
    "Projector",
    "ProjectorConfig",
    "ProjectorError",
    "VisualFeatures",
    "VisualTokens",
    "get",
    "names",
    "register",
]


def __getattr__(name: str) -> object:
    """The classes of the contract, which imports torch, at their first use: names are listed without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from projectors import contract

    return getattr(contract, name)
