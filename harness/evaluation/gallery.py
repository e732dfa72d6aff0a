"""Saves the images of the report's gallery in the run folder; predictions are in the table of samples.

Photographs whose licence does not allow it are left out. The credit of a photograph and the settings of superpixels are
stored as text in their PNG files.
"""

import json
from collections.abc import Iterable
from itertools import islice

import numpy as np
from PIL import Image, PngImagePlugin

from harness.assembly.batches import BatchMaker
from harness.data.example import Example
from harness.results.run_folder import RunFolder


def save_gallery(folder: RunFolder, batches: BatchMaker, examples: Iterable[Example], count: int) -> None:
    """Saves `<image>.png`, and the superpixel labels as 16-bit `<image>.<source key>.png` (65535 in the padding).

    Args:
        count: number of images; the first ones that may be shown are saved.
    """
    folder.gallery.mkdir(parents=True, exist_ok=True)
    for example in islice((one for one in examples if one.licence is None or one.licence.allows_reports), count):
        stem = example.image_id.replace("/", "-")
        picture = folder.gallery / f"{stem}.png"
        if not picture.exists():
            credit = "" if example.licence is None else example.licence.credit
            Image.fromarray(example.image).save(picture, pnginfo=_text("Credit", credit))
        if batches.superpixels is None:
            continue
        labels = folder.gallery / f"{stem}.{batches.superpixels.key}.png"
        if not labels.exists():
            label_map = batches.superpixels.load([example])[0].numpy().astype(np.uint16)
            settings = json.dumps(batches.superpixels.settings, sort_keys=True)
            Image.fromarray(label_map).save(labels, pnginfo=_text("Superpixels", settings))


def _text(name: str, text: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if text:
        info.add_text(name, text)
    return info
