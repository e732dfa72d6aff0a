"""Retrieval between test scenes and their captions, and the model card of clip-scenes.

Source: zero-shot retrieval as in CLIP, https://arxiv.org/abs/2103.00020, appendix E.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from harness.data.frame import to_tensor
from harness.model.vision.families import CLIP
from harness.model.weights.resolution import resolve
from harness.model.weights.strict_loading import load_strictly
from harness.system.environment import command, cpu_model

CACHED_IMAGES = 8
"""Images encoded at a time: they fit the cache of a CPU; encoding 64 at once takes a fifth longer."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A square image (R, R, 3) uint8 and its caption."""

    image: np.ndarray
    caption: str


def pixels_of(images: list[np.ndarray]) -> Tensor:
    """Images (R, R, 3) uint8 -> (B, 3, R, R), normalised as for the vision encoder."""
    mean, std = (rearrange(torch.tensor(values), "c -> c 1 1") for values in CLIP)
    return (to_tensor(images) - mean) / std


def load_clip(folder: Path) -> tuple[CLIPModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from a folder, in float32."""
    model = load_strictly(CLIPModel, folder, str(folder)).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def embed(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Normalised embeddings of images and of texts, each (B, E)."""
    ids = tokenizer([pair.caption for pair in pairs], padding=True, return_tensors="pt")["input_ids"]
    pixels = pixels_of([pair.image for pair in pairs]).split(CACHED_IMAGES)
    images = torch.cat([model.get_image_features(pixel_values=part).pooler_output for part in pixels])
    texts = model.get_text_features(input_ids=ids).pooler_output  # causal: [EOS] does not attend to padding
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)


@torch.inference_mode()
def measure(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Retrieval among these pairs; as a control, the same with each image paired with the caption of the one before."""
    images, texts = embed(model, tokenizer, pairs)
    return {
        "scenes": len(pairs),
        "captions": len({pair.caption for pair in pairs}),
        "chance": 1 / len(pairs),
        **retrieval(images, texts),
        "shuffled": retrieval(images, texts.roll(1, dims=0)),
    }


def retrieval(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Recall at 1: share of images (M, E) whose nearest text (M, E) has the same index, and vice versa."""
    similarity, own = images @ texts.T, torch.arange(len(images))
    return {
        "image_to_text": (similarity.argmax(dim=1) == own).sum().item() / len(own),
        "text_to_image": (similarity.argmax(dim=0) == own).sum().item() / len(own),
    }


def card(folder: Path, scores: Mapping[str, Any]) -> str:
    """The model card in Markdown.

    Args:
        folder: written by `save_pretrained`.
        scores: returned by `measure`, with steps, seed, pairs and seconds of the training.
    """
    record, (model, tokenizer) = resolve(str(folder)), load_clip(folder)
    vision, text = model.vision_model.config, model.text_model.config
    size = (folder / "model.safetensors").stat().st_size / 2**20
    parameters = sum(each.numel() for each in model.parameters())
    shuffled = scores["shuffled"]
    return f"""# clip-scenes

A small CLIP for the embedded benchmark `scenes` only: it was trained on no photographs, and its vocabulary has
{len(tokenizer)} tokens. `vision_encoder: {{name: clip-scenes}}` loads its vision encoder, as for any CLIP. Licence:
Apache-2.0, like the rest of this package.

| | |
|---|---|
| file | `model.safetensors`, float16, {size:.1f} MiB; sha256 of it with `config.json`: `{record.sha256}` |
| architecture | classes of transformers. Vision encoder: {vision.num_hidden_layers} blocks of width \
{vision.hidden_size}, patches of {vision.patch_size} px on {vision.image_size} px; text encoder: \
{text.num_hidden_layers} blocks of width {text.hidden_size}; joint embedding of \
{model.config.projection_dim} dimensions; {parameters / 1e6:.1f} million parameters |
| data | `scenes` version 1, seed {scores["seed"]}, train split, images 0 to {scores["pairs"] - 1} of the four domains \
in turn, each used once, with the caption of its scene graph |
| training | CLIP's symmetric cross-entropy over the {scores["pairs"] // scores["steps"]} pairs of a step, learned \
temperature, no augmentation; Muon and AdamW; refer to `harness/pretraining/clip_scenes.py` |
| command | `{command()}` |
| time | {scores["seconds"] / 60:.0f} minutes for {scores["steps"]} steps |
| hardware | {cpu_model()}, threads: {torch.get_num_threads()}; torch {torch.__version__.split("+")[0]}, CPU, float32 |
| date | {datetime.now(UTC):%Y-%m-%d} |

## Retrieval on test scenes

Recall at 1 on the first {scores["scenes"]} test scenes (seed {scores["seed"]}, domains in turn), which have
{scores["captions"]} different captions: how often the most similar caption is the image's own, and the most similar
image the caption's own. Measured once, after training, with the float16 file. No setting was chosen on test scenes.

| | image to text | text to image |
|---|---|---|
| the scene's own caption | {scores["image_to_text"]:.3f} | {scores["text_to_image"]:.3f} |
| the caption of the scene before (control) | {shuffled["image_to_text"]:.3f} | {shuffled["text_to_image"]:.3f} |
| chance | {scores["chance"]:.3f} | {scores["chance"]:.3f} |

`scores.json` contains the same numbers.

## Limitations

- Only the architecture and the loss are CLIP's; the training data are {scores["pairs"]} synthetic scenes.
- Captions contain the number, texture, colour and shape of objects, but no positions, so training has no supervision
  of locations.
- It was trained on train scenes of the benchmark (seed {scores["seed"]}), not on validation or test scenes.
- The patch outputs of the last block do not affect the loss, which uses CLS only. Use those of the block before it, as
  LLaVA does: `layer: {vision.num_hidden_layers - 1}`.
"""
