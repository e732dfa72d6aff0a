"""Disk cache of superpixel label maps, computed once per image and shared by all cells.

The folder name is a hash of the source, its settings and its code, so a changed setting never loads a stale file.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from harness import superpixels
from harness.cache.encodings import SamCache, frozen_sam
from harness.cache.mask_candidates import CandidateCache
from harness.cache.reading import example_key, read_arrays
from harness.cache.shared_work import OnWait, compute_missing
from harness.data.example import Example, encode_ids
from harness.data.frame import Frame
from harness.model.weights.resolution import WeightsRecord
from harness.superpixels.candidates import CandidateRequest, Proposal
from harness.superpixels.partition import compact
from harness.system.cache_folder import OnProgress, cache_folder
from harness.system.fingerprint import fingerprint


def segment(name: str, config: BaseModel, example: Example) -> np.ndarray:
    """Superpixels (h, w) of one image at its own size; mask candidates, if the source requires them, are cached."""
    source = superpixels.get(name)
    request = source.request(config)
    if request is None:
        return source.segment(config, example)
    candidates = _candidates(request).proposal(example, with_embedding=request.with_embedding)
    return source.segment(config, example, candidates)


def _candidates(request: CandidateRequest) -> CandidateCache:
    return CandidateCache(SamCache(frozen_sam(request.model)), request.settings)


class SuperpixelCache:
    """Label maps of one superpixel source, (R, R) per image with -1 in the padding.

    Args:
        name: of the source.
        config: settings of the source.
        frame: side of the frame, in pixels.
    """

    def __init__(self, name: str, config: BaseModel, frame: int) -> None:
        self.name = name
        self.source = superpixels.get(name)
        self.config = config
        self.frame = frame
        self.weights: tuple[WeightsRecord, ...] = self.source.weights(config)
        self.request = self.source.request(config)
        code = fingerprint(self.source.segment.__module__, Frame.__module__, compact.__module__)
        identity = {"source": name, "frame": frame, **config.model_dump(), "code": code}
        if self.request is not None:
            identity["pool"] = asdict(self.request.settings)
        if self.weights:
            identity["weights"] = [record.sha256 for record in self.weights]
        self.folder = cache_folder("superpixels", identity)

    @property
    def settings(self) -> dict[str, object]:
        """Name and settings of the source, as in a `CellSpec`."""
        return {"name": self.name, **self.config.model_dump(mode="json")}

    @property
    def key(self) -> str:
        """Identifies this source with these settings, in names of derived files."""
        return self.folder.name

    @property
    def pool(self) -> CandidateCache | None:
        """The cached mask candidates that the source selects from; None for a source without candidates."""
        return None if self.request is None else _candidates(self.request)

    def ensure(self, examples: Sequence[Example], on_progress: OnProgress, on_wait: OnWait | None = None) -> None:
        """Compute and store the missing label maps of these images, sharing the work with other processes.

        Candidates come first, for all images: processes that select different superpixels then share them, too, instead
        of waiting for each other at every image.
        """
        pool = self.pool
        if pool is not None:
            missing = [example for example in examples if not self._path(example).exists()]
            pool.ensure(missing, on_progress, on_wait)
        outputs = ((self._path(example), example) for example in examples)
        batch_images = 1 if self.weights else 16  # a source with a model takes seconds per image
        compute_missing(outputs, self._arrays, batch_images, on_progress, on_wait)

    def _arrays(self, examples: Sequence[Example]) -> Iterator[np.ndarray]:
        return (self.compute_superpixels(example).astype(np.int16) for example in examples)

    def compute_superpixels(self, example: Example) -> np.ndarray:
        """Compute the label map (R, R) of one image; mask candidates come from the cache."""
        pool, proposal = self.pool, None
        if pool is not None and self.request is not None:
            proposal = pool.proposal(example, with_embedding=self.request.with_embedding)
        return self.compute(self.source_input(example), proposal)

    def source_input(self, example: Example) -> Example:
        """The source's input for an image, decoded: the resized image of the frame, without the padding.

        A source with a model has a frame of its own. It takes the image at its original size, so that the model's
        embedding is shared by all frames, and its superpixels are resized to this frame.
        """
        image = example.image
        if self.weights:
            return replace(example, picture=image)
        frame = Frame.of(example.size, self.frame)
        return replace(
            example,
            picture=frame.resize(image, Image.Resampling.BILINEAR),
            objects=encode_ids(frame.resize(example.id_map(), Image.Resampling.NEAREST)),
        )

    def compute(self, image: Example, proposal: Proposal | None = None) -> np.ndarray:
        """Compute the label map (R, R) of an image without the cache.

        Args:
            image: the return value of `source_input`.
            proposal: mask candidates; None for a source without candidates.
        """
        frame = Frame.of(image.size, self.frame)
        proposals = () if proposal is None else (proposal,)
        labels = self.source.segment(self.config, image, *proposals)
        if self.weights:
            labels = compact(frame.resize(labels.astype(np.int32), Image.Resampling.NEAREST))
        return frame.place_labels(labels)

    def load(self, examples: Sequence[Example]) -> Tensor:
        """Load the label maps (B, R, R) of images passed to `ensure` before, as int64."""
        return torch.from_numpy(read_arrays([self._path(example) for example in examples])).long()

    def _path(self, example: Example) -> Path:
        # An oracle source uses the ground truth, so the ground truth is part of the name.
        objects = hashlib.sha256(b" ".join(one["counts"] for one in example.objects)).hexdigest()[:8]
        return self.folder / f"{example_key(example)}-{objects}.npy"
