"""What is frozen is computed once per image and kept on disk: patches and superpixels.

A file's name is the hash of the image's pixels, its folder the hash of everything else that decides its content (model,
weights, preprocessing, frame, dtype; or a superpixel source with its settings). So a cell never recomputes what another
cell left, and a changed setting never meets a stale file.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from harness import superpixels
from harness.backbone.vision import VisionEncoder
from harness.cache import cache_dir
from harness.data.example import Example
from harness.files import write_atomically
from harness.frame import Frame, to_tensor

OnProgress = Callable[[int, int], None]
"""Told (done, total) as images are computed."""


def image_key(image: np.ndarray) -> str:
    """Hash of an image's size and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:24]


def _folder(kind: str, identity: dict[str, object]) -> Path:
    """The cache folder of one way of computing, with its identity written in it for people who look."""
    text = json.dumps(identity, sort_keys=True, default=str)
    folder = cache_dir() / kind / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (folder / "identity.json").exists():
        write_atomically(folder / "identity.json", text.encode())
    return folder


class PatchCache:
    """Patches of the frozen vision encoder, (N, C) float16 an image.

    Args:
        encoder: used only for images that are not in the cache.
        batch_images: how many images it encodes at a time.
    """

    def __init__(self, encoder: VisionEncoder, frame: int, batch_images: int = 16) -> None:
        self.encoder = encoder
        self.frame = frame
        self.batch_images = batch_images
        self.folder = _folder(
            "patches",
            {
                "model": encoder.model_id,
                "weights": encoder.weights.sha256,
                "preprocessing": encoder.preprocessing_id,
                "frame": frame,
                "dtype": "float16",
            },
        )

    def ensure(self, examples: Sequence[Example], on_progress: OnProgress) -> None:
        """Computes what is missing for these images."""
        missing = [example for example in examples if not self._path(example).exists()]
        for start in range(0, len(missing), self.batch_images):
            chunk = missing[start : start + self.batch_images]
            for example, patches in zip(chunk, self.encode(chunk), strict=True):
                write_atomically(self._path(example), patches.numpy().astype(np.float16))
            on_progress(min(start + self.batch_images, len(missing)), len(missing))

    def encode(self, examples: Sequence[Example]) -> Tensor:
        """Patches (B, N, C) of these images, computed now, on the CPU."""
        frames = to_tensor([Frame.of(e.image, self.frame).place_image(e.image) for e in examples])
        device = next(self.encoder.parameters()).device
        with torch.inference_mode():
            return self.encoder(frames.to(device)).float().cpu()

    def load(self, examples: Sequence[Example]) -> Tensor:
        """(B, N, C) float32 of images that `ensure` has seen."""
        return torch.from_numpy(np.stack([np.load(self._path(example)) for example in examples])).float()

    def _path(self, example: Example) -> Path:
        return self.folder / f"{image_key(example.image)}.npy"


class SuperpixelCache:
    """Label maps of one superpixel source, (R, R) with -1 in the padding.

    Args:
        name: of the source.
        config: its settings.
    """

    def __init__(self, name: str, config: BaseModel, frame: int) -> None:
        self.source = superpixels.get(name)
        self.config = config
        self.frame = frame
        self.folder = _folder("superpixels", {"source": name, "frame": frame, **config.model_dump()})

    @property
    def key(self) -> str:
        """Names this source with these settings, for files made from it."""
        return self.folder.name

    def ensure(self, examples: Sequence[Example], on_progress: OnProgress) -> None:
        """Cuts the images that are missing."""
        missing = [example for example in examples if not self._path(example).exists()]
        for done, example in enumerate(missing, start=1):
            write_atomically(self._path(example), self.cut(example).astype(np.int16))
            if done % 16 == 0 or done == len(missing):
                on_progress(done, len(missing))

    def cut(self, example: Example) -> np.ndarray:
        """The label map (R, R) of one image, computed now on the image as the frame shows it."""
        frame = Frame.of(example.image, self.frame)
        seen = replace(
            example,
            image=frame.resize(example.image, Image.Resampling.BILINEAR),
            objects=frame.resize(example.objects, Image.Resampling.NEAREST),
        )
        return frame.place_labels(self.source.segment(self.config, seen))

    def load(self, examples: Sequence[Example]) -> Tensor:
        """(B, R, R) int64 of images that `ensure` has seen."""
        return torch.from_numpy(np.stack([np.load(self._path(example)) for example in examples])).long()

    def _path(self, example: Example) -> Path:
        # The ground truth is part of what an oracle sees, so it is part of the name.
        objects = hashlib.sha256(np.ascontiguousarray(example.objects).tobytes()).hexdigest()[:8]
        return self.folder / f"{image_key(example.image)}-{objects}.npy"
