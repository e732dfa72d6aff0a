"""Test images with what each arm predicted or answered, chosen by a rule that is printed, never by hand.

Rules: of the expressions with a target, those at fixed quantiles of the baseline's IoU, then those where the best arm
gains and loses most against the baseline; of those without, the first that the baseline gets right and the first that
it gets wrong; of each family of questions, the first that the baseline answers best and the first that it answers
worst. A rule uses an image once. The pictures show the first seed of each arm.
"""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask

from reports.findings import Findings, Variant
from reports.numbers import fixed

SIDE = 320
QUANTILES = (0.95, 0.75, 0.5, 0.25, 0.05)
NUM_EXTREMES = 3
PREDICTED = np.array([255, 140, 0], dtype=float)
TARGET = np.array([0, 229, 255], dtype=float)
SUPERPIXEL = np.array([255, 221, 51], dtype=float)
PADDING = 65535


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture with its title and a line under it."""

    title: str
    score: str
    source: str


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """What an arm answers, and its score."""

    arm: str
    words: str
    score: str


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One expression on one image: the image, its superpixels, the target, and each arm's prediction.

    Or one question on one image, and each arm's answer, beginning with the right one.
    """

    rule: str
    text: str
    family: str
    image_id: str
    tiles: tuple[Tile, ...]
    generated_text: tuple[GeneratedText, ...] = ()


def gallery_items(findings: Findings) -> list[GalleryItem]:
    """What the rules choose among the images kept for the gallery; empty without such images."""
    folder, best = findings.folder / "gallery", findings.best
    if not folder.is_dir() or best is None:
        return []
    reference = findings.baseline or best.name
    return [*_drawn(findings, folder, best, reference), *_answered(findings, folder, reference)]


def _drawn(findings: Findings, folder: Path, best: Variant, reference: str) -> list[GalleryItem]:
    """The expressions."""
    scores = _scores(findings)
    scores = scores[[_picture(folder, image_id).exists() for image_id in scores.index.get_level_values("image_id")]]
    if scores.empty:
        return []
    has_target = _has_target(findings, scores)
    chosen = [
        *_quantiles(scores.loc[has_target, reference], reference),
        *_extremes(scores[has_target], best.name, reference),
        *_without_target(scores.loc[~has_target, reference], reference),
    ]
    return [_exhibit(findings, folder, rule, *key) for rule, key in chosen]


def _scores(findings: Findings) -> pd.DataFrame:
    """IoU of the first seed of every variant, a row an expression that all have scored."""
    columns = {}
    for variant in findings.variants:
        columns[variant.name] = _first_seed(findings, variant).set_index(["image_id", "expression_id"])["iou"]
    return pd.DataFrame(columns).dropna().sort_index()


def _first_seed(findings: Findings, variant: Variant) -> pd.DataFrame:
    return findings.samples[findings.samples["cell"] == findings.cells(variant.name)["cell"].iloc[0]]


def _has_target(findings: Findings, scores: pd.DataFrame) -> pd.Series:
    areas = _first_seed(findings, findings.variants[0]).set_index(["image_id", "expression_id"])["target_area"]
    return areas.loc[scores.index] > 0


def _without_target(scores: pd.Series, arm: str) -> Iterator[tuple[str, tuple[str, int]]]:
    for is_right, word in ((True, "right"), (False, "wrong")):
        such = scores[(scores == 1) == is_right]
        if len(such):
            yield f"first expression without a target that {arm} gets {word}", such.index[0]


def _quantiles(scores: pd.Series, arm: str) -> Iterator[tuple[str, tuple[str, int]]]:
    left = scores
    for quantile in QUANTILES:
        if left.empty:
            return
        nearest = (left - scores.quantile(quantile)).abs().idxmin()
        yield f"{quantile:.0%} quantile of IoU of {arm}", nearest
        left = left.drop(nearest[0], level="image_id")


def _extremes(scores: pd.DataFrame, best: str, reference: str) -> Iterator[tuple[str, tuple[str, int]]]:
    if best == reference:
        return
    gains = (scores[best] - scores[reference]).rename("gain").sort_values(kind="stable")
    for ordered, word in ((gains[::-1], "gain"), (gains, "loss")):
        first = ordered[~ordered.index.get_level_values("image_id").duplicated()].head(NUM_EXTREMES)
        for place, key in enumerate(first.index, start=1):
            yield f"{word} {place} of {best} against {reference}", key


def _exhibit(findings: Findings, folder: Path, rule: str, image_id: str, expression_id: int) -> GalleryItem:
    picture = np.asarray(Image.open(_picture(folder, image_id)).convert("RGB"))
    tiles = [
        Tile(*title, _encode(_outline_labels(picture, labels))) for title, labels in _superpixels(folder, image_id)
    ]
    rows = {}
    for variant in findings.variants:
        samples = _first_seed(findings, variant)
        is_shown = (samples["image_id"] == image_id) & (samples["expression_id"] == expression_id)
        rows[variant.name] = samples[is_shown].iloc[0]
    target = _mask(next(iter(rows.values())), "target_rle")
    tiles.insert(0, Tile("target", "none" if not target.any() else "", _encode(_draw(picture, target, None))))
    for name, row in rows.items():
        shown = _draw(picture, target, _mask(row, "prediction_rle"))
        tiles.append(
            Tile(name, f"IoU {fixed(row['iou'], 2)}{'' if row['predicted_seg'] else ', no [SEG]'}", _encode(shown))
        )
    first = next(iter(rows.values()))
    return GalleryItem(rule, first["text"], first["family"], image_id, tuple(tiles))


def _answered(findings: Findings, folder: Path, reference: str) -> Iterator[GalleryItem]:
    """The questions."""
    keys = ["image_id", "expression_id"]
    tables = {each.name: _first_seed(findings, each).set_index(keys).sort_index() for each in findings.variants}
    answered_rows = tables[reference].dropna(subset="generated_text")
    answered_rows = answered_rows[
        np.array([_picture(folder, image_id).exists() for image_id, _ in answered_rows.index], bool)
    ]
    shown: set[str] = set()
    for family, rows in answered_rows.groupby("family", sort=False):
        for word, extreme in {"best": rows["score"].max(), "worst": rows["score"].min()}.items():
            such = rows[(rows["score"] == extreme) & (rows["score"].nunique() > 1)]
            fresh = such[~such.index.get_level_values("image_id").isin(shown)]
            if len(fresh):
                shown.add(fresh.index[0][0])
                rule = f"first {family} question that {reference} answers {word}"
                yield _conversation(folder, rule, fresh.index[0], tables)


def _conversation(folder: Path, rule: str, key: tuple[str, int], tables: dict[str, pd.DataFrame]) -> GalleryItem:
    rows = {name: table.loc[key] for name, table in tables.items() if key in table.index}
    first, (image_id, _) = next(iter(rows.values())), key
    picture = np.asarray(Image.open(_picture(folder, image_id)).convert("RGB"))
    tiles = [Tile("image", "", _encode(_enlarge(picture)))]
    tiles += [
        Tile(*title, _encode(_outline_labels(picture, label_map)))
        for title, label_map in _superpixels(folder, image_id)
    ]
    generated_text = [GeneratedText("right answer", json.loads(first["references"])[0], "")]
    generated_text += [GeneratedText(name, row["generated_text"], fixed(row["score"], 2)) for name, row in rows.items()]
    return GalleryItem(rule, first["text"], first["family"], image_id, tuple(tiles), tuple(generated_text))


def _picture(folder: Path, image_id: str) -> Path:
    return folder / f"{image_id.replace('/', '-')}.png"


def _superpixels(folder: Path, image_id: str) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Every label map kept for an image, without the frame's padding."""
    stem = _picture(folder, image_id).stem
    for path in sorted(folder.glob(f"{stem}.*.png")):
        labels = np.asarray(Image.open(path)).astype(int)
        inside = labels != PADDING
        labels = labels[inside.any(axis=1)][:, inside.any(axis=0)]
        yield (f"{len(np.unique(labels))} superpixels", ""), labels


def _mask(row: pd.Series, column: str) -> np.ndarray:
    size = [int(row["height"]), int(row["width"])]
    return coco_mask.decode({"size": size, "counts": row[column].encode()}).astype(bool)


def _enlarge(array: np.ndarray) -> np.ndarray:
    """To SIDE pixels on the longest side, by nearest neighbour for what is not a picture."""
    height, width = array.shape[:2]
    scale = SIDE / max(height, width)
    size = (round(width * scale), round(height * scale))
    if array.ndim == 3:
        return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC))
    return np.asarray(Image.fromarray(array.astype(np.int32)).resize(size, Image.Resampling.NEAREST))


def _draw(picture: np.ndarray, target: np.ndarray, prediction: np.ndarray | None) -> np.ndarray:
    """The prediction tinted, what is outside it faded, the target outlined."""
    canvas = _enlarge(picture).astype(float)
    if prediction is not None:
        mask = _enlarge(prediction).astype(bool)
        grey = canvas.mean(axis=-1, keepdims=True)
        canvas = np.where(mask[..., None], 0.3 * canvas + 0.7 * PREDICTED, 0.35 * canvas + 0.35 * grey + 76)
    canvas[_boundaries(_enlarge(target), radius=4)] = 20
    canvas[_boundaries(_enlarge(target), radius=2)] = TARGET
    return canvas.astype(np.uint8)


def _outline_labels(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    canvas = _enlarge(picture).astype(float)
    size = (canvas.shape[1], canvas.shape[0])
    enlarged = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    halo = _boundaries(enlarged, radius=2)
    canvas[halo] = 0.4 * canvas[halo]
    canvas[_boundaries(enlarged, radius=1)] = SUPERPIXEL
    return canvas.astype(np.uint8)


def _boundaries(labels: np.ndarray, radius: int) -> np.ndarray:
    """(H, W) bool: pixels with another label within `radius` rows or columns; the image's border is no boundary."""
    edges = np.zeros(labels.shape, dtype=bool)
    for step in range(1, radius + 1):
        for view, seen in ((edges, labels), (edges.T, labels.T)):
            differs = seen[step:] != seen[:-step]
            view[step:] |= differs
            view[:-step] |= differs
    return edges


def _encode(canvas: np.ndarray) -> str:
    """A data URI."""
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
