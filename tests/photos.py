"""The folder of photographs that some tests measure; they are skipped where it is missing."""

import os
from pathlib import Path

import pytest

VARIABLE = "SVP_HARNESS_PHOTOS"
"""Environment variable with the folder."""


def folder() -> Path | None:
    """$SVP_HARNESS_PHOTOS, or `../shared/photos` beside the checkout; None if it has no instances.json."""
    path = Path(os.environ.get(VARIABLE) or Path(__file__).parents[2] / "shared" / "photos")
    return path if (path / "instances.json").exists() else None


needs_photos = pytest.mark.skipif(
    folder() is None, reason=f"this machine has no photographs: ${VARIABLE} and ../shared/photos are missing"
)
