"""The best masks that the superpixels of a study allow, without training: an upper bound for models of their tokens.

    python -m benchmarks.token_ceiling studies/granularity_sweep.yaml

For each superpixel source of the study (arms and search points, each source once), over the images on which cells are
scored, in total, by family, and by domain if there are several:

1. *Ceiling*: mean IoU of the best union of superpixels (`harness.superpixels.best_unions`), which a model that always
   selects the right tokens would reach; then without the expressions that have no target, all of which it answers.
2. *FP rate* of these unions, as the metric `fp_rate` of cells.
3. *Ambiguous*: share of the expressions with a target whose best superpixel is also the best one of another object.
4. *Point ceiling*, if `mask_decoder.prompt` is `points`: mean IoU of the best mask that the SAM predicts for one point
   in a superpixel, the pixel farthest from the superpixel's border. Point-prompted models join the masks of several
   points, so this is no upper bound for expressions with several targets.

Intervals resample images, as in reports. The tables are printed, and written to runs/<study>/token_ceiling.csv, from
which a report that is built afterwards has a table and a figure.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from harness import superpixels
from harness.assembly.assembly import load_examples
from harness.cache.encodings import SamCache, frozen_sam
from harness.cache.superpixel_labels import SuperpixelCache
from harness.data.example import Example
from harness.data.frame import Frame
from harness.data.overlap import iou
from harness.errors import HarnessError
from harness.evaluation.metrics import count
from harness.evaluation.token_ceiling import ceiling_rows
from harness.model.mask_decoder.decoder import ImageEmbedding, MaskDecoder
from harness.model.mask_decoder.interior_points import interior_points
from harness.monitoring.progress import LineProgress
from harness.results.score_table import ScoreTable, variant_name
from harness.results.statistics import Estimate
from harness.study.study import CellSpec, Study
from harness.system.exit_code import exit_code
from reports.ceiling import ALL, FILE

COLUMNS = {
    "giou": "ceiling gIoU",
    "target_giou": "with a target",
    "fp_rate": "FP rate",
    "ambiguous": "ambiguous",
    "point_giou": "point ceiling gIoU",
}
"""Headings of the measures, by the beginning of their columns in the file."""


@dataclass(frozen=True, slots=True)
class Source:
    """A superpixel source of a study.

    Attributes:
        name: the first variant that uses it.
        method: name of the superpixel source.
        spec: of that variant.
    """

    name: str
    method: str
    spec: CellSpec
    cache: SuperpixelCache


def sources_of(study: Study) -> list[Source]:
    """The superpixel sources of a study, each once per dataset; arms without superpixels are left out.

    Raises:
        HarnessError: no arm uses superpixels.
    """
    found: dict[tuple[str, ...], Source] = {}
    for point in study.points():
        spec = study.spec(point)
        if spec.superpixels is None:
            continue
        config = {key: value for key, value in spec.superpixels.items() if key != "name"}
        name = spec.superpixels["name"]
        cache = SuperpixelCache(name, superpixels.get(name).Config(**config), spec.vision_encoder.frame)
        key = (cache.key, str(spec.data), spec.evaluation.split, spec.mask_decoder.name, spec.mask_decoder.prompt)
        found.setdefault(key, Source(variant_name(point.arm, point.to_json()), name, spec, cache))
    if not found:
        raise HarnessError(f"{study.source}: no arm uses superpixels; set base.superpixels and a projector such as svp")
    return list(found.values())


def measure(source: Source, examples: Sequence[Example], progress: LineProgress) -> pd.DataFrame:
    """One row per expression: the columns of `ceiling_rows`, the method, the number of superpixels, and `point_iou`."""
    progress.name = source.name
    source.cache.ensure(examples, lambda done, total: progress.note(f"superpixels {done}/{total}"))
    decoder = source.spec.mask_decoder
    sam = SamCache(frozen_sam(decoder.name)) if decoder.prompt == "points" else None
    if sam is not None:
        sam.ensure(examples, lambda done, total: progress.note(f"SAM embeddings {done}/{total}"))
    rows: list[dict[str, Any]] = []
    for number, example in enumerate(examples, start=1):
        progress.note(f"ceiling {number}/{len(examples)}")
        labels = source.cache.load([example])[0].numpy()
        points = [float("nan")] * len(example.expressions) if sam is None else best_at_points(example, labels, sam)
        for row, value in zip(ceiling_rows(example, labels), points, strict=True):
            rows.append({**row, "method": source.method, "superpixels": int(labels.max()) + 1, "point_iou": value})
    return pd.DataFrame(rows)


@torch.inference_mode()
def best_at_points(example: Example, labels: np.ndarray, sam: SamCache) -> list[float]:
    """For each expression, the highest IoU of SAM's masks of one point per superpixel; 1 without a target.

    Args:
        labels: (R, R) superpixels of the frame, -1 in the padding.
    """
    frame, model = Frame.of(example.size, sam.frame), sam.model.sam
    decoder = MaskDecoder(model.prompt_encoder, model.mask_decoder)
    found = interior_points(labels)
    # A point at the centre of a pixel of one frame, in pixels of the other.
    points = torch.from_numpy((found + 0.5) * sam.frame / len(labels) - 0.5).float()
    embedding = sam.load([example]).to(next(decoder.parameters()).device)
    image = torch.zeros(len(points), dtype=torch.long, device=embedding.device)
    logits = decoder.best_at_points(ImageEmbedding(embedding), points.to(embedding.device), image)
    valid_mask = example.valid_mask()
    masks = (frame.restore(logits) > 0).cpu().numpy() & valid_mask
    best: dict[tuple[int, ...], float] = {}
    for targets in {expression.targets for expression in example.expressions}:
        target = example.target_mask(targets) & valid_mask
        pixels = count(masks, np.broadcast_to(target, masks.shape))
        best[targets] = float(iou(pixels["intersection"], pixels["union"]).max()) if target.any() else 1.0
    return [best[expression.targets] for expression in example.expressions]


def tables_of(samples: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per source and family or domain, the first of a source over all: measures with intervals, and counts.

    Args:
        samples: of each source, as of `measure`.
    """
    whole = pd.concat([rows.assign(cell=name, arm=name, seed=0) for name, rows in samples.items()], ignore_index=True)
    results = pd.DataFrame([{"cell": name, "arm": name, "point": "", "status": "done"} for name in samples])
    of_unions = ScoreTable(results, whole)
    scores = {
        "giou": (of_unions, "giou"),
        "target_giou": (ScoreTable(results, whole[whole["target_area"] > 0]), "giou"),
        "fp_rate": (of_unions, "fp_rate"),
        "ambiguous": (_mean_of("is_ambiguous", results, whole), "giou"),
        "point_giou": (_mean_of("point_iou", results, whole), "giou"),
    }
    found = []
    for name, rows in samples.items():
        domains = [*dict.fromkeys(rows["domain"])]
        families = [(family, None) for family in dict.fromkeys(rows["family"])]
        for family, domain in [(None, None), *families, *((None, one) for one in domains if len(domains) > 1)]:
            estimates = {
                measure: table.estimate(name, metric, family, domain)
                for measure, (table, metric) in scores.items()
                if name in table.variants
            }
            own = rows if domain is None else rows[rows["domain"] == domain]
            found.append(
                {
                    "source": name,
                    "method": rows["method"].iloc[0],
                    "family": family or ALL,
                    "domain": domain or ALL,
                    **_columns(estimates, own),
                }
            )
    return pd.DataFrame(found)


def _mean_of(column: str, results: pd.DataFrame, samples: pd.DataFrame) -> ScoreTable:
    """A table whose gIoU is the mean of another column, over the expressions that have a value."""
    kept = samples.dropna(subset=column)
    return ScoreTable(results, kept.assign(iou=kept[column].astype(float)))


def _columns(estimates: dict[str, Estimate], rows: pd.DataFrame) -> dict[str, float]:
    overall = estimates["giou"]
    values = {
        f"{measure}{suffix}": value
        for measure, one in estimates.items()
        for suffix, value in (("", one.value), ("_low", one.low), ("_high", one.high))
    }
    superpixels_per_image = float(rows.groupby("image_id")["superpixels"].first().mean())
    return {
        **values,
        "superpixels_per_image": superpixels_per_image,
        "num_images": overall.num_images,
        "num_expressions": overall.num_expressions,
    }


def printed(table: pd.DataFrame) -> str:
    """The rows over all expressions with intervals, then measures by family and by domain."""
    overall = table[(table["family"] == ALL) & (table["domain"] == ALL)]
    shown = pd.DataFrame(
        {"source": overall["source"], "superpixels": overall["superpixels_per_image"].map("{:.1f}".format)}
    )
    for measure, heading in COLUMNS.items():
        if measure in overall and overall[measure].notna().any():
            shown[heading] = [
                f"{value:.3f} [{low:.3f}, {high:.3f}]"
                for value, low, high in overall[[measure, f"{measure}_low", f"{measure}_high"]].itertuples(index=False)
            ]
    shown["images"], shown["expressions"] = overall["num_images"], overall["num_expressions"]
    parts = [shown.to_markdown(index=False)]
    for kind, measure in (("family", "giou"), ("family", "ambiguous"), ("domain", "giou")):
        rows = table[table[kind] != ALL]
        if len(rows):
            columns = rows.pivot(index="source", columns=kind, values=measure)
            columns = columns.reindex(index=overall["source"], columns=rows[kind].unique()).dropna(axis=1, how="all")
            parts.append(f"{COLUMNS[measure]} by {kind}\n\n{columns.to_markdown(floatfmt='.3f')}")
    return "\n\n".join(parts)


def _measured(study: Study, images: int | None, progress: LineProgress) -> Iterator[tuple[str, pd.DataFrame]]:
    for source in sources_of(study):
        examples = load_examples(source.spec, source.spec.evaluation.split)
        yield (
            source.name,
            measure(source, [examples[i] for i in range(min(images or len(examples), len(examples)))], progress),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables of the command line and writes the file; returns the exit code, 2 for an error of the user."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.token_ceiling", description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--images", type=int, help="only the first images of the split; default: all")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: runs/<study>/token_ceiling.csv")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    study = Study.from_yaml(options.study, options.set)
    table = tables_of(dict(_measured(study, options.images, LineProgress(Console(stderr=True)))))
    path = options.out or Path("runs") / study.name / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    print(f"{printed(table)}\n\nwritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
