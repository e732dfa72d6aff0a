"""Small datasets in the official formats, made from scenes, so that every mask and sentence is known."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from harness.data import scenes
from harness.data.example import Example

IMAGES = "images/mscoco/images/train2014"


def made(count: int = 4) -> list[Example]:
    """The scenes of the datasets below, as images 101, 102, ..."""
    config = scenes.Config(seed=7, test_images=count, expressions_per_image=6)
    return list(scenes.load(config, "test"))


def runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding of an (h, w) bool mask, as for crowds."""
    pixels = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(pixels, prepend=0, append=-1))
    return {"size": list(mask.shape), "counts": [int(n) for n in np.diff(edges, prepend=0)]}


def annotation(key: int, image_id: int, segmentation: Any, is_crowd: int = 0) -> dict[str, Any]:
    return {
        "id": key,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [0, 0, 1, 1],
        "area": 1.0,
        "iscrowd": is_crowd,
        "segmentation": segmentation,
    }


def write_images(folder: Path, examples: list[Example]) -> list[dict[str, Any]]:
    """Writes lossless PNG images and returns the `images` of an instance file."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, example in enumerate(examples):
        name = f"COCO_train2014_{101 + number:012d}.png"
        Image.fromarray(example.image).save(folder / name)
        entries.append({"id": 101 + number, "file_name": name, "height": example.size[0], "width": example.size[1]})
    return entries


def instances(examples: list[Example], images: list[dict[str, Any]]) -> dict[str, Any]:
    """One annotation per object, alternately with compressed and plain run lengths; ids are 1000 * image + object."""
    entries = []
    for number, example in enumerate(examples):
        for k, one in enumerate(example.objects, start=1):
            text = {"size": list(one["size"]), "counts": one["counts"].decode()}
            segmentation = text if k % 2 else runs(coco_mask.decode(one) > 0)
            entries.append(annotation(1000 * (101 + number) + k, 101 + number, segmentation))
    return {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "shape"}]}


def refs(examples: list[Example], splits: list[str], *, as_lists: bool) -> list[dict[str, Any]]:
    """One ref per expression; expressions with several targets or none only with `as_lists`."""
    found: list[dict[str, Any]] = []
    for number, (example, split) in enumerate(zip(examples, splits, strict=True)):
        for expression in example.expressions:
            ids = [1000 * (101 + number) + k for k in expression.targets]
            if len(ids) != 1 and not as_lists:
                continue
            found.append(
                {
                    "ref_id": len(found),
                    "ann_id": (ids or [-1]) if as_lists else ids[0],
                    "category_id": 1,
                    "image_id": 101 + number,
                    "file_name": f"COCO_train2014_{101 + number:012d}_{len(found)}.jpg",
                    "split": split,
                    "no_target": not ids,
                    "sent_ids": [2 * len(found), 2 * len(found) + 1],
                    "sentences": [
                        {"sent_id": 2 * len(found), "sent": expression.text, "raw": expression.text, "tokens": []},
                        {"sent_id": 2 * len(found) + 1, "sent": f"the  caf\xe9's {expression.text.upper()}", "raw": ""},
                    ],
                }
            )
    return found


def write_refer(root: Path, examples: list[Example], splits: list[str]) -> None:
    """RefCOCO (unc) as released by REFER: a pickle in Python 2's protocol, and an instance file."""
    write_refs(root / "refcoco", "refs(unc).p", root, examples, refs(examples, splits, as_lists=False))


def write_grefcoco(root: Path, examples: list[Example], splits: list[str]) -> None:
    """gRefCOCO, whose refs are JSON with lists of annotations."""
    write_refs(root / "grefcoco", "grefs(unc).json", root, examples, refs(examples, splits, as_lists=True))


def write_refs(folder: Path, name: str, root: Path, examples: list[Example], content: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    images = write_images(root / IMAGES, examples)
    (folder / "instances.json").write_text(json.dumps(instances(examples, images)))
    if name.endswith(".p"):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    else:
        (folder / name).write_text(json.dumps(content))


def write_instances(
    folder: Path, examples: list[Example], change: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Instance files whose annotations all have an expression: the last image is `test`, the others are `train`.

    Args:
        change: edits the training instances before they are written.

    Returns:
        The settings that load them.
    """
    images = write_images(folder / "images", examples)
    content = instances(examples, images)
    for one in content["annotations"]:
        one["expression"] = "something"
    last = images[-1]["id"]
    for split in ("train", "test"):
        part = {
            "images": [one for one in content["images"] if (one["id"] == last) == (split == "test")],
            "annotations": [one for one in content["annotations"] if (one["image_id"] == last) == (split == "test")],
        }
        if split == "train":
            change(part)
        (folder / f"{split}.json").write_text(json.dumps(part))
    files = {split: str(folder / f"{split}.json") for split in ("train", "test")}
    return {"name": "coco_instances", "annotations": files, "images": str(folder / "images")}


def write_reasonseg(root: Path, name: str, image: np.ndarray, content: dict[str, Any], encoding: str = "utf-8") -> None:
    """One image of ReasonSeg's test split; PNG pixels under the official name."""
    folder = root / "ReasonSeg" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{name}.jpg", format="PNG")
    (folder / f"{name}.json").write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
