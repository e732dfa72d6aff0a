"""Saves the images of the report's gallery in the run folder; predictions are in the table of samples."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from harness.assembly.batches import BatchMaker
from harness.data.example import Example
from harness.results.run_folder import RunFolder


def save_gallery(folder: RunFolder, batches: BatchMaker, examples: Sequence[Example]) -> None:
    """Saves `<image>.png`, and the superpixel labels as 16-bit `<image>.<source key>.png` (65535 in the padding)."""
    folder.gallery.mkdir(parents=True, exist_ok=True)
    for example in examples:
        stem = example.image_id.replace("/", "-")
        picture = folder.gallery / f"{stem}.png"
        if not picture.exists():
            Image.fromarray(example.image).save(picture)
        if batches.superpixels is None:
            continue
        labels = folder.gallery / f"{stem}.{batches.superpixels.key}.png"
        if not labels.exists():
            Image.fromarray(batches.superpixels.load([example])[0].numpy().astype(np.uint16)).save(labels)
