"""Visual projectors: one file, one projector, one name in YAML. Knows torch; knows nothing of the harness."""

from projectors.contract import (
    REFERENCE_DIMS,
    Dims,
    IncompatibleError,
    Projector,
    ProjectorConfig,
    ProjectorError,
    VisualFeatures,
    VisualTokens,
)
from projectors.registry import get, names, register

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
