"""Disk cache of a frozen SAM's mask candidates, computed once per image."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from harness.cache.encodings import SamCache
from harness.cache.reading import example_key
from harness.cache.shared_work import OnWait, compute_missing
from harness.data.example import Example
from harness.data.frame import Frame
from harness.model.mask_decoder.decoder import MaskDecoder
from harness.superpixels.candidates import Candidates, PoolSettings, Proposal, propose
from harness.system.cache_folder import OnProgress, cache_folder
from harness.system.fingerprint import fingerprint


class CandidateCache:
    """Candidate pools, one JSON file per image, named like the image's embedding.

    Args:
        embeddings: cached embeddings of the SAM that proposes the candidates.
    """

    def __init__(self, embeddings: SamCache, settings: PoolSettings) -> None:
        model = embeddings.model
        self.embeddings = embeddings
        self.settings = settings
        self.mask_decoder = MaskDecoder(model.sam.prompt_encoder, model.sam.mask_decoder)
        code = fingerprint(propose.__module__)
        identity = {"model": model.record.name, "weights": model.record.sha256, **asdict(settings), "code": code}
        self.folder = cache_folder("candidates", identity)

    def ensure(self, examples: Sequence[Example], on_progress: OnProgress, on_wait: OnWait | None = None) -> None:
        """Compute and store the missing candidates of these images, sharing the work with other processes."""

        def compute(batch: Sequence[Example]) -> Iterator[bytes]:
            for example in batch:
                self.embeddings.ensure([example], lambda *_: None, on_wait)
                yield self.propose(example).to_json()

        outputs = ((self._path(example), example) for example in examples)
        compute_missing(outputs, compute, batch_size=1, on_progress=on_progress, on_wait=on_wait)

    def propose(self, example: Example) -> Candidates:
        """Compute the candidates of one image from its cached embedding."""
        return self.compute(self.embeddings.load([example])[0], example.size).candidates

    def compute(self, embedding: Tensor, size: tuple[int, int]) -> Proposal:
        """Compute candidates from an image's size (h, w) and embedding (P, g, g), without the cache."""
        device = next(self.mask_decoder.parameters()).device
        frame = Frame.of(size, self.embeddings.frame)
        return Proposal(propose(self.mask_decoder, embedding.to(device), frame, self.settings), frame, embedding.cpu())

    def proposal(self, example: Example, *, with_embedding: bool) -> Proposal:
        """Load the candidates of one image; compute and store them if they are missing."""
        self.ensure([example], lambda *_: None)
        embedding = None
        if with_embedding:
            self.embeddings.ensure([example], lambda *_: None)
            embedding = self.embeddings.load([example])[0]
        return Proposal(self.load(example), Frame.of(example.size, self.embeddings.frame), embedding)

    def load(self, example: Example) -> Candidates:
        """Load the candidates of an image passed to `ensure` before."""
        return Candidates.from_json(self._path(example).read_bytes())

    def _path(self, example: Example) -> Path:
        return self.folder / f"{example_key(example)}.json"
