"""Test images with the prediction or the answer of each arm, chosen by fixed rules that the report prints.

- Expressions with a target: those at fixed quantiles of the baseline's IoU, then those with the largest gain and the
  largest loss of the best arm compared with the baseline.
- Expressions without a target: the first that the baseline rejects, and the first that it does not.
- Questions: the first of each family with the baseline's best score, and the first with its worst score.

A rule uses an image once. The pictures show the first seed of each arm, of up to `MAX_SHOWN` arms.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask

from reports.findings import MAX_SHOWN, Findings, Variant
from reports.numbers import fixed, listed, plural
from reports.pictures import draw, encode, enlarge, outline_labels

QUANTILES = (0.95, 0.75, 0.5, 0.25, 0.05)
NUM_EXTREMES = 3
PADDING = 65535


_Key = tuple[str, int]
"""Image and expression."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture with its title and the line below it."""

    title: str
    score: str
    source: str


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """The answer of an arm and its score."""

    arm: str
    words: str
    score: str


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One expression on one image: the image, its superpixels, the target, and each arm's prediction.

    For a question: the image, its superpixels, the reference answer, and each arm's answer. `credit` is that of a
    photograph.
    """

    rule: str
    text: str
    family: str
    image_id: str
    credit: str
    tiles: tuple[Tile, ...]
    generated_text: tuple[GeneratedText, ...] = ()


@dataclass(frozen=True, slots=True)
class SavedImages:
    """The pictures and superpixels that a run saved for the gallery.

    Attributes:
        arms: the arms that are shown, by the settings of their superpixels as JSON.
    """

    folder: Path
    arms: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, findings: Findings) -> "SavedImages":
        """Those of a run."""
        arms: dict[str, list[str]] = {}
        for variant in findings.shown:
            settings = findings.spec(variant.name).get("superpixels")
            arms.setdefault(json.dumps(settings, sort_keys=True), []).append(variant.name)
        return cls(findings.folder / "gallery", arms)

    def has(self, image_id: str) -> bool:
        """Whether the picture was saved."""
        return self._picture(image_id).exists()

    def read(self, image_id: str) -> tuple[np.ndarray, str]:
        """The picture (h, w, 3), and its credit; empty if it has none."""
        with Image.open(self._picture(image_id)) as image:
            return np.asarray(image.convert("RGB")), str(image.info.get("Credit", ""))

    def superpixels(self, image_id: str, picture: np.ndarray) -> list[Tile]:
        """The superpixels of an image in the order of the arms, with the arms that use them if there are several.

        Args:
            picture: of the image, as `read` returns it.
        """
        order, found = list(self.arms), list[tuple[str, np.ndarray]]()
        for path in sorted(self.folder.glob(f"{self._picture(image_id).stem}.*.png"))[:MAX_SHOWN]:
            with Image.open(path) as image:
                labels, settings = np.asarray(image).astype(int), str(image.info.get("Superpixels", ""))
            is_image = labels != PADDING
            found.append((settings, labels[is_image.any(axis=1)][:, is_image.any(axis=0)]))
        found.sort(key=lambda each: order.index(each[0]) if each[0] in order else len(order))
        return [
            Tile(
                plural(len(np.unique(labels)), "superpixel"),
                listed(self.arms.get(settings, ())) if len(found) > 1 else "",
                encode(outline_labels(picture, labels)),
            )
            for settings, labels in found
        ]

    def _picture(self, image_id: str) -> Path:
        return self.folder / f"{image_id.replace('/', '-')}.png"


def gallery_items(findings: Findings) -> list[GalleryItem]:
    """The items that the rules choose among the images saved for the gallery; empty without such images."""
    saved, best = SavedImages.of(findings), findings.best
    if not saved.folder.is_dir() or best is None:
        return []
    reference = findings.baseline or best.name
    return [*_expressions(findings, saved, best, reference), *_questions(findings, saved, reference)]


def _expressions(findings: Findings, saved: SavedImages, best: Variant, reference: str) -> list[GalleryItem]:
    """Items of expressions."""
    scores = _scores(findings)
    scores = scores[[saved.has(image_id) for image_id in scores.index.get_level_values("image_id")]]
    if scores.empty:
        return []
    has_target = _has_target(findings, scores)
    chosen = [
        *_quantiles(scores.loc[has_target, reference], reference),
        *_extremes(scores[has_target], best.name, reference),
        *_without_target(scores.loc[~has_target, reference], reference),
    ]
    rows = _rows(findings, [key for _, key in chosen])
    return [_expression_item(rows[key], saved, rule, key[0]) for rule, key in chosen]


def _rows(findings: Findings, keys: Sequence[_Key]) -> dict[_Key, dict[str, pd.Series]]:
    """All columns of the chosen samples of the first seed of each variant that is shown, by sample and variant."""
    cells = {_first_cell(findings, variant): variant.name for variant in findings.shown}
    samples = findings.gallery_samples(cells, {image_id for image_id, _ in keys})
    found: dict[_Key, dict[str, pd.Series]] = {}
    by_cell = {str(cell): table.set_index(["image_id", "expression_id"]) for cell, table in samples.groupby("cell")}
    for key in keys:
        tables = {name: by_cell[cell] for cell, name in cells.items() if cell in by_cell}
        found[key] = {name: table.loc[key] for name, table in tables.items() if key in table.index}
    return found


def _scores(findings: Findings) -> pd.DataFrame:
    """IoU of the first seed of every variant that is shown, one row per expression that all of them scored."""
    columns = {}
    for variant in findings.shown:
        columns[variant.name] = _first_seed(findings, variant).set_index(["image_id", "expression_id"])["iou"]
    return pd.DataFrame(columns).dropna().sort_index()


def _first_seed(findings: Findings, variant: Variant) -> pd.DataFrame:
    return findings.samples_of(_first_cell(findings, variant))


def _first_cell(findings: Findings, variant: Variant) -> str:
    return str(findings.cells(variant.name)["cell"].iloc[0])


def _has_target(findings: Findings, scores: pd.DataFrame) -> pd.Series:
    areas = _first_seed(findings, findings.shown[0]).set_index(["image_id", "expression_id"])["target_area"]
    return areas.loc[scores.index] > 0


def _without_target(scores: pd.Series, arm: str) -> Iterator[tuple[str, tuple[str, int]]]:
    for is_rejected, verb in ((True, "rejects"), (False, "does not reject")):
        found = scores[(scores == 1) == is_rejected]
        if len(found):
            yield f"first expression without a target that {arm} {verb}", found.index[0]


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
    for ordered, word in ((gains[::-1], "largest gain"), (gains, "largest loss")):
        first = ordered[~ordered.index.get_level_values("image_id").duplicated()].head(NUM_EXTREMES)
        for rank, key in enumerate(first.index, start=1):
            yield f"{word} of {best} compared with {reference}, rank {rank}", key


def _expression_item(rows: dict[str, pd.Series], saved: SavedImages, rule: str, image_id: str) -> GalleryItem:
    """The item of one expression.

    Args:
        rows: its sample by variant.
    """
    picture, credit = saved.read(image_id)
    target = _mask(next(iter(rows.values())), "target_rle")
    tiles = [Tile("target", "none" if not target.any() else "", encode(draw(picture, target, None)))]
    tiles += saved.superpixels(image_id, picture)
    for name, row in rows.items():
        shown = draw(picture, target, _mask(row, "prediction_rle"))
        tiles.append(
            Tile(name, f"IoU {fixed(row['iou'], 2)}{'' if row['predicted_seg'] else ', no [SEG]'}", encode(shown))
        )
    first = next(iter(rows.values()))
    return GalleryItem(rule, first["text"], first["family"], image_id, credit, tuple(tiles))


def _questions(findings: Findings, saved: SavedImages, reference: str) -> list[GalleryItem]:
    """Items of questions."""
    keys = ["image_id", "expression_id"]
    [first] = [variant for variant in findings.shown if variant.name == reference]
    answered_rows = _first_seed(findings, first).set_index(keys).sort_index().dropna(subset="generated_text")
    answered_rows = answered_rows[np.array([saved.has(image_id) for image_id, _ in answered_rows.index], bool)]
    shown: set[str] = set()
    chosen: list[tuple[str, _Key]] = []
    for family, rows in answered_rows.groupby("family", sort=False):
        for word, extreme in {"best": rows["score"].max(), "worst": rows["score"].min()}.items():
            extreme_rows = rows[(rows["score"] == extreme) & (rows["score"].nunique() > 1)]
            unused = extreme_rows[~extreme_rows.index.get_level_values("image_id").isin(shown)]
            if len(unused):
                shown.add(unused.index[0][0])
                rule = f"first {family} question with the {word} score of {reference}"
                chosen.append((rule, unused.index[0]))
    samples = _rows(findings, [key for _, key in chosen]) if chosen else {}
    return [_question_item(samples[key], saved, rule, key[0]) for rule, key in chosen]


def _question_item(rows: dict[str, pd.Series], saved: SavedImages, rule: str, image_id: str) -> GalleryItem:
    first = next(iter(rows.values()))
    picture, credit = saved.read(image_id)
    tiles = [Tile("image", "", encode(enlarge(picture))), *saved.superpixels(image_id, picture)]
    texts = [GeneratedText("reference answer", json.loads(first["references"])[0], "")]
    texts += [GeneratedText(name, row["generated_text"], fixed(row["score"], 2)) for name, row in rows.items()]
    return GalleryItem(rule, first["text"], first["family"], image_id, credit, tuple(tiles), tuple(texts))


def _mask(row: pd.Series, column: str) -> np.ndarray:
    size = [int(row["height"]), int(row["width"])]
    return coco_mask.decode({"size": size, "counts": row[column].encode()}).astype(bool)
