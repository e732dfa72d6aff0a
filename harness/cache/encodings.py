"""What frozen encoders make of an image, computed once and kept on disk: the vision encoder's patches, SAM's embedding.

A file's name is the hash of the image's pixels, its folder the hash of everything else that decides its content (model,
weights, preprocessing, frame, dtype).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.example import Example
from harness.data.frame import Frame, to_tensor
from harness.model.mask_decoder.sam import LoadedSam, load_sam
from harness.model.vision.encoder import Encoding, VisionEncoder
from harness.system.cache_folder import OnProgress, cache_folder, image_key
from harness.system.device import default_device
from harness.system.files import write_atomically
from harness.system.fingerprint import fingerprint


class EncodingCache(ABC):
    """One float16 array an image.

    Args:
        kind: what is kept, a folder's name.
        identity: everything that decides what is computed, beside the image and its frame.
        frame: side of the frame that the encoder sees, in pixels.
        batch_images: how many images are encoded at a time.
    """

    model_code: str
    """The module of the frozen model; its code is part of the cache's identity."""

    def __init__(self, kind: str, identity: Mapping[str, object], frame: int, batch_images: int) -> None:
        self.frame = frame
        self.batch_images = batch_images
        code = fingerprint(type(self).__module__, self.model_code)
        self.folder = cache_folder(kind, {**identity, "frame": frame, "dtype": "float16", "code": code})

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> Tensor:
        """The encodings (B, ...) of these images, computed now, float32 on the CPU."""

    def ensure(self, examples: Sequence[Example], on_progress: OnProgress) -> None:
        """Computes what is missing for these images."""
        missing = [example for example in examples if not self._path(example).exists()]
        for start in range(0, len(missing), self.batch_images):
            chunk = missing[start : start + self.batch_images]
            for example, encoding in zip(chunk, self.encode(chunk), strict=True):
                write_atomically(self._path(example), encoding.numpy().astype(np.float16))
            on_progress(min(start + self.batch_images, len(missing)), len(missing))

    def load(self, examples: Sequence[Example]) -> Tensor:
        """(B, ...) float32 of images that `ensure` has seen."""
        return torch.from_numpy(np.stack([np.load(self._path(example)) for example in examples])).float()

    def _path(self, example: Example) -> Path:
        return self.folder / f"{image_key(example.image)}.npy"


class PatchCache(EncodingCache):
    """Patches of the frozen vision encoder, (N, C) an image; the encoder runs for images not in the cache only."""

    kind = "patches"
    model_code = VisionEncoder.__module__

    def __init__(self, encoder: VisionEncoder, frame: int, batch_images: int = 16, **identity: object) -> None:
        self.encoder = encoder
        identity |= {
            "model": encoder.model_id,
            "weights": encoder.weights.sha256,
            "layer": encoder.layer,
            "preprocessing": encoder.preprocessing_id,
        }
        super().__init__(self.kind, identity, frame, batch_images)

    def encode(self, examples: Sequence[Example]) -> Tensor:
        """Patches (B, N, C)."""
        with torch.inference_mode():
            return self._encoding(examples).patches.float().cpu()

    def _encoding(self, examples: Sequence[Example], **options: Any) -> Encoding:
        """What the encoder makes of these images, with what else is asked of it."""
        placed = [Frame.of(example.size, self.frame) for example in examples]
        frames = to_tensor([frame.place_image(e.image) for frame, e in zip(placed, examples, strict=True)])
        sizes = [(frame.height, frame.width) for frame in placed]
        return self.encoder.encode(frames.to(next(self.encoder.parameters()).device), sizes, **options)


class AttentionCache(PatchCache):
    """The patches' keys in the encoder's last block, after what CLS asks and offers there, where there is one.

    (A, N, C / A) an image, (A, 2 + N, C / A) with CLS.
    """

    kind = "queries-and-keys"

    def encode(self, examples: Sequence[Example]) -> Tensor:
        """(B, A, N or 2 + N, C / A)."""
        with torch.inference_mode():
            encoding = self._encoding(examples, has_attention=True)
        assert encoding.keys is not None
        if encoding.cls_query is None or encoding.cls_key is None:
            return encoding.keys.float().cpu()
        of_cls = torch.stack([encoding.cls_query, encoding.cls_key], dim=2)
        return torch.cat([of_cls, encoding.keys], dim=2).float().cpu()


class LayerCache(PatchCache):
    """Patches as they leave some of the encoder's blocks, (K, N, C) an image.

    Args:
        layers: these blocks, counted from 1.
    """

    kind = "layers"

    def __init__(self, encoder: VisionEncoder, frame: int, layers: tuple[int, ...]) -> None:
        self.layers = layers
        super().__init__(encoder, frame, layers=layers)

    def encode(self, examples: Sequence[Example]) -> Tensor:
        """(B, K, N, C)."""
        with torch.inference_mode():
            layers = self._encoding(examples, layers=self.layers).layers
        assert layers is not None
        return layers.float().cpu()


class VisionCache:
    """What a projector reads of the vision encoder: patches, and only where it asks, attention and earlier blocks.

    Args:
        has_attention: whether it reads keys, or the query and key of CLS.
        layers: the earlier blocks that it reads, counted from 1.
    """

    def __init__(
        self, encoder: VisionEncoder, frame: int, *, has_attention: bool = False, layers: tuple[int, ...] = ()
    ) -> None:
        self.encoder = encoder
        self.frame = frame
        self.patches = PatchCache(encoder, frame)
        self.attention = AttentionCache(encoder, frame) if has_attention else None
        self.layers = LayerCache(encoder, frame, layers) if layers else None

    def ensure(self, examples: Sequence[Example], on_progress: OnProgress) -> None:
        """Computes what is missing for these images."""
        for cache in (self.patches, self.attention, self.layers):
            if cache is not None:
                cache.ensure(examples, on_progress)

    def load(self, examples: Sequence[Example]) -> Encoding:
        """Of images that `ensure` has seen, on the CPU."""
        attention = None if self.attention is None else self.attention.load(examples)
        of_cls = None if attention is None or not self.encoder.has_cls else attention[:, :, :2]
        return Encoding(
            patches=self.patches.load(examples),
            keys=attention if attention is None or of_cls is None else attention[:, :, 2:],
            cls_query=None if of_cls is None else of_cls[:, :, 0],
            cls_key=None if of_cls is None else of_cls[:, :, 1],
            layers=None if self.layers is None else self.layers.load(examples),
        )

    def compute(self, frames: Tensor, sizes: Sequence[tuple[int, int]]) -> Encoding:
        """The same of frames (B, 3, R, R) with images of these sizes, computed now in one run, on its device."""
        layers = () if self.layers is None else self.layers.layers
        return self.encoder.encode(frames, sizes, has_attention=self.attention is not None, layers=layers)


class SamCache(EncodingCache):
    """SAM's image embedding, (P, g, g) an image: one for the mask decoder and for the superpixels."""

    model_code = LoadedSam.__module__

    def __init__(self, model: LoadedSam, batch_images: int = 4) -> None:
        self.model = model
        identity = {"model": model.record.name, "weights": model.record.sha256}
        super().__init__("sam", identity, model.frame, batch_images)

    def encode(self, examples: Sequence[Example]) -> Tensor:
        """Embeddings (B, P, g, g)."""
        with torch.inference_mode():
            return self._embed(examples).cpu()

    def compute(self, example: Example) -> Tensor:
        """What `load` returns for one image, (1, P, g, g), computed without the cache and left on the model's device.

        It has the cache's float16 precision, so that whatever is made of it is the same.
        """
        return self._embed([example]).half().float()

    def _embed(self, examples: Sequence[Example]) -> Tensor:
        placed = [Frame.of(example.size, self.frame) for example in examples]
        frames = to_tensor([frame.place_image(e.image) for frame, e in zip(placed, examples, strict=True)])
        valid_mask = np.stack([frame.valid_mask() for frame in placed])
        device = next(self.model.parameters()).device
        return self.model.embed(frames.to(device), torch.from_numpy(valid_mask).to(device))


@lru_cache(maxsize=1)
def frozen_sam(name: str) -> LoadedSam:
    """A SAM that only answers, loaded once for all who ask, on the default device; compiled where that is a GPU.

    What begins at random does not depend on when.
    """
    device = default_device()
    with torch.random.fork_rng(devices=[]):
        model = load_sam(name).to(device)
    if device.type == "cuda":
        model.sam.image_encoder.compile()
    return model
