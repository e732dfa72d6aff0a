"""Inference on one image in stages, for timing and FLOP counts; without any cache."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.assembly.batches import BatchMaker
from harness.data.example import Example
from harness.data.frame import Frame, to_tensor
from harness.model.segmenter import Segmenter


class Pipeline:
    """Inference from the decoded pixels of one image to the output for its first expression or question.

    The constructor decodes the image and loads the models. A run accesses no file: only computation is measured.

    Args:
        segmenter: put into evaluation mode.
        batches: of the segmenter; defines its encoders and superpixels.
        example: an image with at least one expression or question.
    """

    def __init__(self, segmenter: Segmenter, batches: BatchMaker, example: Example) -> None:
        self.segmenter = segmenter.eval()
        self.batches = batches
        self.example = replace(example, picture=example.image)
        self.query = batches.query([example.queries[:1]])
        self._frame = Frame.of(example.size, batches.vision.frame)
        self._mask_frame = Frame.of(example.size, batches.mask_frame)
        self._first = torch.zeros(1, dtype=torch.long, device=batches.device)
        self._candidates = None if batches.superpixels is None else batches.superpixels.pool
        self._source_input = None if batches.superpixels is None else batches.superpixels.source_input(self.example)

    @property
    def device(self) -> torch.device:
        """The device of the segmenter."""
        return self.batches.device

    def run(self, lap: Callable[[str], None]) -> None:
        """Run once, and call `lap(name)` after each of `PIPELINE_STAGES`, in order.

        The caller sets gradients and autocast. Superpixels are computed without autocast, as for the cache.
        """
        frames = to_tensor([self._frame.place_image(self.example.image)]).to(self.device)
        encoded = self.batches.vision.compute(frames, [(self._frame.height, self._frame.width)])
        lap("vision")
        mask_embedding, candidate_embedding = self._embeddings()
        lap("sam")
        labels = self._superpixels(candidate_embedding)
        lap("superpixels")
        features = self.batches.build_features(encoded, labels)
        tokens = self.segmenter.projector(features)
        lap("projector")
        if not self.query.is_expression.any():
            self.segmenter.generate(tokens, self.query)
            lap("llm")
        else:
            answer_states, seg = self.segmenter.run_llm(tokens, self.query)
            self.segmenter.llm.answer_logits(answer_states)
            lap("llm")
            mask_inputs = frames if mask_embedding is None else mask_embedding
            prompts = self.segmenter.prompt(seg)
            self._mask_frame.restore(self.segmenter.segment(features.patches, mask_inputs, prompts, self._first))
        lap("mask")

    def _embeddings(self) -> tuple[Tensor | None, Tensor | None]:
        """SAM's embeddings (1, P, g, g) for the mask decoder and for superpixels; computed once if both use one SAM."""
        sam = self.batches.sam
        mask_embedding = None if sam is None else sam.compute(self.example)
        if self._candidates is None:
            return mask_embedding, None
        of_candidates = self._candidates.embeddings
        is_shared = sam is not None and of_candidates.folder == sam.folder
        return mask_embedding, mask_embedding if is_shared else of_candidates.compute(self.example)

    def _superpixels(self, embedding: Tensor | None) -> Tensor | None:
        """(1, R, R) int64 labels; None if the projector uses no superpixels."""
        if self.batches.superpixels is None or self._source_input is None:
            return None
        proposal = None
        with torch.autocast(self.device.type, enabled=False):
            if self._candidates is not None and embedding is not None:
                proposal = self._candidates.compute(embedding[0], self.example.size)
            labels = self.batches.superpixels.compute(self._source_input, proposal)
        return torch.from_numpy(labels).long().unsqueeze(0).to(self.device)
