"""Mask candidates of a frozen SAM, computed once per image and kept on disk."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from harness.cache.encodings import SamCache
from harness.data.example import Example
from harness.data.frame import Frame
from harness.model.mask_decoder.decoder import MaskDecoder
from harness.superpixels.candidates import Candidates, PoolSettings, Proposal, propose
from harness.system.cache_folder import OnProgress, cache_folder, image_key
from harness.system.files import write_atomically
from harness.system.fingerprint import fingerprint


class CandidateCache:
    """Candidate pools on disk, one JSON an image, named like the encodings they are made from.

    Args:
        embeddings: of the SAM that proposes.
    """

    def __init__(self, embeddings: SamCache, settings: PoolSettings) -> None:
        model = embeddings.model
        self.embeddings = embeddings
        self.settings = settings
        self.head = MaskDecoder(model.sam.prompt_encoder, model.sam.mask_decoder)
        code = fingerprint(propose.__module__)
        identity = {"model": model.record.name, "weights": model.record.sha256, **asdict(settings), "code": code}
        self.folder = cache_folder("candidates", identity)

    def ensure(self, examples: Sequence[Example], on_progress: OnProgress) -> None:
        """Asks SAM about the images that are missing."""
        missing = [example for example in examples if not self._path(example).exists()]
        for done, example in enumerate(missing, start=1):
            self.embeddings.ensure([example], lambda *_: None)
            write_atomically(self._path(example), self.propose(example).to_json())
            on_progress(done, len(missing))

    def propose(self, example: Example) -> Candidates:
        """The candidates of one image whose embedding is in the cache, computed now."""
        return self.compute(self.embeddings.load([example])[0], example.size).candidates

    def compute(self, embedding: Tensor, size: tuple[int, int]) -> Proposal:
        """The candidates of an image of this size (h, w) with this embedding (P, g, g), computed without the cache."""
        device = next(self.head.parameters()).device
        frame = Frame.of(size, self.embeddings.frame)
        return Proposal(propose(self.head, embedding.to(device), frame, self.settings), frame, embedding.cpu())

    def proposal(self, example: Example, *, with_embedding: bool) -> Proposal:
        """The candidates of one image, read from the cache, or computed where they are missing there."""
        self.ensure([example], lambda *_: None)
        embedding = None
        if with_embedding:
            self.embeddings.ensure([example], lambda *_: None)
            embedding = self.embeddings.load([example])[0]
        return Proposal(self.load(example), Frame.of(example.size, self.embeddings.frame), embedding)

    def load(self, example: Example) -> Candidates:
        """Of an image that `ensure` has seen."""
        return Candidates.from_json(self._path(example).read_bytes())

    def _path(self, example: Example) -> Path:
        return self.folder / f"{image_key(example.image)}.json"
