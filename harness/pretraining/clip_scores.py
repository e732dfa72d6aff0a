"""How well a CLIP tells test scenes apart by their captions, and the model card that says so.

Source: zero-shot retrieval as in CLIP, https://arxiv.org/abs/2103.00020, appendix E.1: of all captions the likeliest.
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
"""So many fit the cache of a CPU; a step of 64 at once takes a fifth longer."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A square image (R, R, 3) uint8 and what it shows."""

    image: np.ndarray
    caption: str


def pixels_of(images: list[np.ndarray]) -> Tensor:
    """Images (R, R, 3) uint8 -> (B, 3, R, R), normalised as the vision encoder does it."""
    mean, std = (rearrange(torch.tensor(values), "c -> c 1 1") for values in CLIP)
    return (to_tensor(images) - mean) / std


def load_clip(folder: Path) -> tuple[CLIPModel, PreTrainedTokenizerBase]:
    """Both sides and their words from a folder, in float32."""
    model = load_strictly(CLIPModel, folder, str(folder)).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def embed(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Unit vectors of images and of texts, each (B, E)."""
    ids = tokenizer([pair.caption for pair in pairs], padding=True, return_tensors="pt")["input_ids"]
    pixels = pixels_of([pair.image for pair in pairs]).split(CACHED_IMAGES)
    images = torch.cat([model.get_image_features(pixel_values=part).pooler_output for part in pixels])
    texts = model.get_text_features(input_ids=ids).pooler_output  # causal: the end does not see the padding behind it
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)


@torch.inference_mode()
def measure(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Retrieval among these pairs, and the same where each image is said to show what the one before it shows."""
    images, texts = embed(model, tokenizer, pairs)
    return {
        "scenes": len(pairs),
        "captions": len({pair.caption for pair in pairs}),
        "chance": 1 / len(pairs),
        **retrieval(images, texts),
        "shuffled": retrieval(images, texts.roll(1, dims=0)),
    }


def retrieval(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Share of images (M, E) whose likeliest text (M, E) is the one in the same place, and of texts; unit vectors."""
    similarity, own = images @ texts.T, torch.arange(len(images))
    return {
        "image_to_text": (similarity.argmax(dim=1) == own).sum().item() / len(own),
        "text_to_image": (similarity.argmax(dim=0) == own).sum().item() / len(own),
    }


def card(folder: Path, scores: Mapping[str, Any]) -> str:
    """What a README beside the weights says.

    Args:
        folder: as `save_pretrained` wrote it.
        scores: of `measure`, with steps, seed, pairs and seconds of the training.
    """
    record, (model, tokenizer) = resolve(str(folder)), load_clip(folder)
    vision, text = model.vision_model.config, model.text_model.config
    size = (folder / "model.safetensors").stat().st_size / 2**20
    parameters = sum(each.numel() for each in model.parameters())
    shuffled = scores["shuffled"]
    return f"""# clip-scenes

A CLIP in small, for the embedded benchmark `scenes` and nothing else: it has never seen a photograph, and its words are
the {len(tokenizer)} of scenes' captions. `vision_encoder: {{name: clip-scenes}}` loads its image side, as of any CLIP;
Apache-2.0, like the rest of this package.

| | |
|---|---|
| file | `model.safetensors`, float16, {size:.1f} MiB; sha256 of it with `config.json`: `{record.sha256}` |
| architecture | transformers' own classes. Image side: {vision.num_hidden_layers} blocks of width \
{vision.hidden_size}, patches of {vision.patch_size} px on {vision.image_size} px; text side: \
{text.num_hidden_layers} blocks of width {text.hidden_size}; compared in \
{model.config.projection_dim} dimensions; {parameters / 1e6:.1f} million parameters |
| data | `scenes` version 1, seed {scores["seed"]}, train split, images 0 to {scores["pairs"] - 1} of the four domains \
in turn, each seen once, with the caption of its scene graph |
| recipe | CLIP's symmetric cross-entropy over a step's {scores["pairs"] // scores["steps"]} pairs, learned \
temperature, no augmentation; Muon and AdamW; see `harness/pretraining/clip_scenes.py` |
| command | `{command()}` |
| time | {scores["seconds"] / 60:.0f} minutes for {scores["steps"]} steps |
| hardware | {cpu_model()}, threads: {torch.get_num_threads()}; torch {torch.__version__.split("+")[0]}, CPU, float32 |
| date | {datetime.now(UTC):%Y-%m-%d} |

## How well it tells scenes apart

The first {scores["scenes"]} test scenes (seed {scores["seed"]}, domains in turn), which have {scores["captions"]}
different captions: how often the likeliest of all captions is the image's own, and the likeliest of all images the
caption's own. Measured once, after training, with the float16 file. No choice was made on test scenes.

| | image to text | text to image |
|---|---|---|
| the scene's own caption | {scores["image_to_text"]:.3f} | {scores["text_to_image"]:.3f} |
| the caption of the scene before (control) | {shuffled["image_to_text"]:.3f} | {shuffled["text_to_image"]:.3f} |
| chance | {scores["chance"]:.3f} | {scores["chance"]:.3f} |

`scores.json` holds the same figures.

## What it is not

- No CLIP of the web: its architecture and its loss are CLIP's, its data are {scores["pairs"]} drawings.
- Captions say how many objects of which texture, colour and shape there are, never where: nothing but the captions'
  words has told it what lies where in an image.
- It has seen the benchmark's own train scenes (seed {scores["seed"]}), and none of its validation and test scenes.
- Patches that leave the last block reach the loss only through CLS, so take those of the block before it, as LLaVA
  does: `layer: {vision.num_hidden_layers - 1}`.
"""
