"""Mean IoU of a SAM on the objects of scenes, at the resolution of the image.

Source: Segment Anything, https://arxiv.org/abs/2304.02643, section 7.1: the first click is the pixel of the object
farthest from its edge, each later one the pixel of the error farthest from its edge.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from segment_anything.modeling import Sam
from torch import Tensor

from harness.data.example import Example
from harness.data.frame import to_tensor
from harness.model.mask_decoder.sam import LoadedSam
from harness.pretraining.prompts import Prompts, middle_points, tight_boxes

NUM_CORRECTIONS = 2


def decode(sam: Sam, embedding: Tensor, prompts: Prompts, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Predicts all four masks for the prompts of one image.

    Args:
        embedding: (P, g, g).
        previous: (K, 4g, 4g) logits that the last clicks correct; None in the first round.

    Returns:
        Logits (K, 4, 4g, 4g) and predicted IoU (K, 4): the mask for unambiguous prompts, then three alternatives.
    """
    encoder = sam.prompt_encoder
    dense = encoder(points=None, boxes=None, masks=None if previous is None else previous.unsqueeze(1))[1]
    return sam.mask_decoder.predict_masks(
        image_embeddings=embedding.unsqueeze(0),
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=prompts.embed(sam),
        dense_prompt_embeddings=dense,
    )


def best(logits: Tensor, scores: Tensor) -> Tensor:
    """The one of the three alternatives with the highest predicted IoU: (K, 4, h, w) -> (K, h, w)."""
    return logits[torch.arange(len(logits)), 1 + scores[:, 1:].argmax(1)]


def restored(logits: Tensor, side: int) -> np.ndarray:
    """Logits (K, h, w) -> masks (K, R, R) bool."""
    framed = F.interpolate(logits.unsqueeze(1), (side, side), mode="bilinear", align_corners=False)
    return (framed[:, 0] > 0).cpu().numpy()


def object_masks(example: Example) -> np.ndarray:
    """(K, h, w) bool, the visible parts of the objects."""
    masks = np.stack([coco_mask.decode(one) for one in example.objects]).astype(bool)
    return masks[masks.any((1, 2))]


def measure(model: LoadedSam, examples: Sequence[Example]) -> list[dict[str, float | str]]:
    """One row per object: image_id, pixels, and the IoU for the prompts `one_point`, `box` and `three_points`.

    One point uses the alternative with the highest predicted IoU; a box and corrected points use the mask for
    unambiguous prompts. Images must fill the frame.
    """
    rows: list[dict[str, float | str]] = []
    for example in examples:
        with torch.inference_mode():
            embedding = model.embed(to_tensor([example.image]).to(model.sam.device))[0]
            masks = object_masks(example)
            by_kind = {kind: _iou(masks, guess(model, embedding, masks)) for kind, guess in KINDS.items()}
        for index, mask in enumerate(masks):
            scores = {kind: float(values[index]) for kind, values in by_kind.items()}
            rows.append({"image_id": example.image_id, "pixels": float(mask.sum()), **scores})
    return rows


def means(rows: Sequence[dict[str, float | str]]) -> dict[str, float]:
    """Mean IoU over objects, for each kind of prompt."""
    return {kind: float(np.mean([row[kind] for row in rows])) for kind in KINDS}


def means_by_domain(rows: Sequence[dict[str, float | str]]) -> dict[str, dict[str, float]]:
    """Mean IoU for each visual domain, which is part of the image id."""
    grouped = defaultdict(list)
    for row in rows:
        grouped[str(row["image_id"]).split("/")[1].split("-")[0]].append(row)
    return {domain: means(grouped[domain]) for domain in sorted(grouped)}


def _iou(masks: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    return (masks & guesses).sum((1, 2)) / (masks | guesses).sum((1, 2))


def _one_point(model: LoadedSam, embedding: Tensor, masks: np.ndarray) -> np.ndarray:
    return restored(best(*decode(model.sam, embedding, middle_points(masks))), model.frame)


def _box(model: LoadedSam, embedding: Tensor, masks: np.ndarray) -> np.ndarray:
    return restored(decode(model.sam, embedding, tight_boxes(masks))[0][:, 0], model.frame)


def _three_points(model: LoadedSam, embedding: Tensor, masks: np.ndarray) -> np.ndarray:
    prompts = middle_points(masks)
    logits = best(*decode(model.sam, embedding, prompts))
    for _ in range(NUM_CORRECTIONS):
        prompts = prompts.corrected(restored(logits, model.frame), rng=None)
        logits = decode(model.sam, embedding, prompts, logits)[0][:, 0]
    return restored(logits, model.frame)


KINDS: dict[str, Callable[[LoadedSam, Tensor, np.ndarray], np.ndarray]] = {
    "one_point": _one_point,
    "box": _box,
    "three_points": _three_points,
}
