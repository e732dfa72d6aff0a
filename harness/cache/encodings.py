"""Disk cache of frozen encoder outputs, computed once per image: the vision encoder's features and SAM's embedding.

The file name is the hash of the image's pixels. The folder name is the hash of everything else that determines the
content: model, weights, preprocessing, frame, dtype and code.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.cache.reading import example_key, read_arrays
from harness.cache.shared_work import OnWait, compute_missing
from harness.data.example import Example
from harness.data.frame import Frame, to_tensor
from harness.model.mask_decoder.sam import LoadedSam, load_sam
from harness.model.vision.encoder import VisionEncoder
from harness.system.cache_folder import OnProgress, cache_folder
from harness.system.device import default_device
from harness.system.fingerprint import fingerprint
from projectors import VisualFeatures


class EncodingCache(ABC):
    """One float16 array per image.

    Args:
        kind: name of the parent folder.
        identity: everything that determines the content, except the image and its frame.
        frame: side of the encoder's input frame, in pixels.
        batch_images: number of images encoded at once.
    """

    model_code: str
    """Module of the frozen model; its code is part of the cache's identity."""

    def __init__(self, kind: str, identity: Mapping[str, object], frame: int, batch_images: int) -> None:
        self.frame = frame
        self.batch_images = batch_images
        code = fingerprint(type(self).__module__, self.model_code)
        self.folder = cache_folder(kind, {**identity, "frame": frame, "dtype": "float16", "code": code})

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> Tensor:
        """Compute the encodings (B, ...) of these images, float32 on the CPU."""

    def ensure(self, examples: Sequence[Example], on_progress: OnProgress, on_wait: OnWait | None = None) -> None:
        """Compute and store the missing encodings of these images, sharing the work with other processes.

        How images are grouped into batches depends on what other processes compute. On a CPU an image's encoding is
        bitwise the same in any batch (DINOv2, CLIP and SAM); on a GPU it may differ by rounding.
        """
        outputs = ((self._path(example), example) for example in examples)
        compute_missing(outputs, self._arrays, self.batch_images, on_progress, on_wait)

    def _arrays(self, examples: Sequence[Example]) -> Iterator[np.ndarray]:
        return (encoding.numpy().astype(np.float16) for encoding in self.encode(examples))

    def load(self, examples: Sequence[Example]) -> Tensor:
        """Load the encodings (B, ...) of images passed to `ensure` before, as float32."""
        return torch.from_numpy(read_arrays([self._path(example) for example in examples])).float()

    def _path(self, example: Example) -> Path:
        return self.folder / f"{example_key(example)}.npy"


class PatchCache(EncodingCache):
    """Patches of the frozen vision encoder, (N, C) per image."""

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
            return self._run(examples).patches.float().cpu()

    def _run(self, examples: Sequence[Example], **options: Any) -> VisualFeatures:
        """Run the encoder on these images.

        Args:
            options: passed to `VisionEncoder.encode`.
        """
        placed = [Frame.of(example.size, self.frame) for example in examples]
        frames = to_tensor([frame.place_image(e.image) for frame, e in zip(placed, examples, strict=True)])
        sizes = [(frame.height, frame.width) for frame in placed]
        return self.encoder.encode(frames.to(next(self.encoder.parameters()).device), sizes, **options)


class AttentionCache(PatchCache):
    """Keys of the encoder's last block, (A, N, C / A) per image.

    If the encoder has a CLS token, its query and key come first: (A, 2 + N, C / A).
    """

    kind = "queries-and-keys"

    def encode(self, examples: Sequence[Example]) -> Tensor:
        """(B, A, N or 2 + N, C / A)."""
        with torch.inference_mode():
            features = self._run(examples, has_attention=True)
        assert features.keys is not None
        if features.cls_query is None or features.cls_key is None:
            return features.keys.float().cpu()
        of_cls = torch.stack([features.cls_query, features.cls_key], dim=2)
        return torch.cat([of_cls, features.keys], dim=2).float().cpu()


class LayerCache(PatchCache):
    """Patches after some of the encoder's blocks, (K, N, C) per image.

    Args:
        layers: the blocks, counted from 1.
    """

    kind = "layers"

    def __init__(self, encoder: VisionEncoder, frame: int, layers: tuple[int, ...]) -> None:
        self.layers = layers
        super().__init__(encoder, frame, layers=layers)

    def encode(self, examples: Sequence[Example]) -> Tensor:
        """(B, K, N, C)."""
        with torch.inference_mode():
            layers = self._run(examples, layers=self.layers).layers
        assert layers is not None
        return layers.float().cpu()


class VisionCache:
    """The vision encoder's output that a projector requires: patches, and optionally attention and earlier blocks.

    Args:
        has_attention: include the keys of the last block, and the query and key of CLS if there is one.
        layers: include the outputs of these blocks, counted from 1.
    """

    def __init__(
        self, encoder: VisionEncoder, frame: int, *, has_attention: bool = False, layers: tuple[int, ...] = ()
    ) -> None:
        self.encoder = encoder
        self.frame = frame
        self.patches = PatchCache(encoder, frame)
        self.attention = AttentionCache(encoder, frame) if has_attention else None
        self.layers = LayerCache(encoder, frame, layers) if layers else None

    def ensure(self, examples: Sequence[Example], on_progress: OnProgress, on_wait: OnWait | None = None) -> None:
        """Compute and store the missing outputs of these images, sharing the work with other processes."""
        for cache in (self.patches, self.attention, self.layers):
            if cache is not None:
                cache.ensure(examples, on_progress, on_wait)

    def load(self, examples: Sequence[Example]) -> VisualFeatures:
        """Load the features of images passed to `ensure` before, on the CPU."""
        attention = None if self.attention is None else self.attention.load(examples)
        of_cls = None if attention is None or not self.encoder.has_cls else attention[:, :, :2]
        return VisualFeatures(
            patches=self.patches.load(examples),
            patch_mask=self.patch_mask(examples),
            keys=attention if attention is None or of_cls is None else attention[:, :, 2:],
            cls_query=None if of_cls is None else of_cls[:, :, 0],
            cls_key=None if of_cls is None else of_cls[:, :, 1],
            layers=None if self.layers is None else self.layers.load(examples),
        )

    def patch_mask(self, examples: Sequence[Example]) -> Tensor:
        """(B, N) bool, False where a patch lies wholly in the padding of the frame."""
        frames = [Frame.of(example.size, self.frame) for example in examples]
        return torch.from_numpy(np.stack([frame.patch_mask(self.encoder.grid) for frame in frames]))

    def compute(self, frames: Tensor, sizes: Sequence[tuple[int, int]]) -> VisualFeatures:
        """Compute the same features for frames (B, 3, R, R) with images of these sizes, on the frames' device."""
        layers = () if self.layers is None else self.layers.layers
        return self.encoder.encode(frames, sizes, has_attention=self.attention is not None, layers=layers)


class SamCache(EncodingCache):
    """SAM's image embedding, (P, g, g) per image, shared by the mask decoder and the superpixels."""

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
        """Compute the embedding (1, P, g, g) of one image without the cache, on the model's device.

        It is rounded to float16 like the cached one, so that results do not depend on the cache.
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
    """Load a frozen SAM once per process, on the default device; its image encoder is compiled on a GPU.

    The global random state is not changed.
    """
    device = default_device()
    with torch.random.fork_rng(devices=[]):
        model = load_sam(name).to(device)
    if device.type == "cuda":
        model.sam.image_encoder.compile()
    return model
