"""The metrics of a cell, each defined once: its column, how it is shown and compared, and its formula over samples.

Rules that hold for every formula, because the codebases of the field differ here:

- A metric is a ratio of sums over samples; a mean is the ratio whose denominator is 1 for every sample. Every
  expression counts once, with or without a target. Pixels are whole numbers, and no epsilon is added.
- An empty prediction for an empty target has IoU 1. If only one of the two is empty, IoU is 0.
- A model that rejects an expression predicts the empty mask, so "rejected" and "empty" are the same.
- `giou_with_target`, `precision_at_*`, `wrong_object_rate` and `target_accuracy` leave out the expressions without a
  target. A threshold is reached at equality.
- A ratio whose denominator is 0 is NaN.

Source: ReLA, https://arxiv.org/abs/2306.00968 (gIoU, cIoU, no-target and target accuracy, precision at a threshold).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import pandas as pd

Parts = tuple[pd.Series, pd.Series]
"""Numerator and denominator of a metric, one value per sample."""

FAMILIES = (
    *("category", "attribute", "texture", "absolute", "size", "relation", "ordinal", "group", "absent"),
    *("single", "multi", "no_target", "short", "long"),
)
"""Families of expressions: of `scenes` and `coco_expressions`, of gRefCOCO and similar datasets, of ReasonSeg."""
PIPELINE_STAGES = ("vision", "sam", "superpixels", "projector", "llm", "mask")
"""Stages of inference on one image, in order; FLOPs and latency are measured for each."""
THRESHOLDS = (50, 60, 70, 80, 90)
"""IoU in percent at which precision is reported; a non-empty prediction below the first is a wrong object."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One numeric column of results.parquet.

    Args:
        name: the column.
        label: the name in headings and sentences.
        unit: empty for shares and for counts per model.
        higher_is_better: None for controls, which have no better direction.
        decimals: digits shown after the decimal point.
        is_abbreviated: reports show three digits and a scale instead, such as 12.3k.
        applies_to: the kind of samples that are scored; None for a column that is measured per cell.
        formula: numerator and denominator for each of these samples; None for a column without samples.
        family: only samples of this family are scored; None for all.
        has_families: whether there is a column for each family too.
        maximum: largest possible value.
        chance: columns of the controls that estimate the score of a model that ignores the image.
    """

    name: str
    label: str
    unit: str = ""
    higher_is_better: bool | None = True
    decimals: int = 3
    is_abbreviated: bool = False
    applies_to: Literal["expression", "question"] | None = None
    formula: Callable[[pd.DataFrame], Parts] | None = None
    family: str | None = None
    has_families: bool = False
    maximum: float = math.inf
    chance: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def select(self, samples: pd.DataFrame) -> pd.DataFrame:
        """The samples that the metric applies to."""
        scoring = samples["scoring"]
        chosen = samples[scoring.isna() if self.applies_to == "expression" else scoring == self.name]
        return chosen if self.family is None else chosen[chosen["family"] == self.family]

    def parts(self, samples: pd.DataFrame) -> Parts:
        """The formula on selected samples."""
        assert self.formula is not None, f"{self.name} is not computed from samples"
        return self.formula(samples)

    def compute(self, samples: pd.DataFrame) -> float:
        """The ratio of the sums over selected samples; NaN if the denominator is 0 or a value is missing."""
        numerator, denominator = (part.sum(skipna=False) for part in self.parts(samples))
        return float(numerator / denominator) if denominator else math.nan


def shuffled(name: str) -> str:
    """The column of the control in which texts and images are shuffled against each other."""
    return f"{name}_shuffled"


def of_family(name: str, family: str) -> str:
    """The column of a metric over one family of expressions."""
    return f"{name}_{family}"


def _ones(samples: pd.DataFrame) -> pd.Series:
    return pd.Series(1.0, index=samples.index)


def _mean(column: str, samples: pd.DataFrame) -> Parts:
    return samples[column], _ones(samples)


def _ciou(samples: pd.DataFrame) -> Parts:
    return samples["intersection"], samples["union"]


def _outside_intersection(area: str, samples: pd.DataFrame) -> Parts:
    """Share of the pixels of an area that lie outside the intersection of prediction and target."""
    return samples[area] - samples["intersection"], samples[area]


def _mean_with_target(column: str, samples: pd.DataFrame) -> Parts:
    """The mean over the expressions that have a target."""
    has_target = samples["target_area"] > 0
    return samples[column] * has_target, has_target


def _precision(percent: int, samples: pd.DataFrame) -> Parts:
    has_target = samples["target_area"] > 0
    return has_target & (samples["iou"] >= percent / 100), has_target


def _wrong_object(samples: pd.DataFrame) -> Parts:
    """Share of the expressions with a target whose prediction is not empty and below the first threshold."""
    has_target, has_prediction = samples["target_area"] > 0, samples["predicted_area"] > 0
    return has_target & has_prediction & (samples["iou"] < THRESHOLDS[0] / 100), has_target


def _no_target_accuracy(samples: pd.DataFrame) -> Parts:
    """Share of the expressions without a target whose prediction is empty."""
    has_target, has_prediction = samples["target_area"] > 0, samples["predicted_area"] > 0
    return ~has_target & ~has_prediction, ~has_target


def _target_accuracy(samples: pd.DataFrame) -> Parts:
    """Share of the expressions with a target whose prediction is not empty."""
    has_target, has_prediction = samples["target_area"] > 0, samples["predicted_area"] > 0
    return has_target & has_prediction, has_target


_mask_metric = partial(Metric, applies_to="expression", maximum=1.0)
_lower_mask_metric = partial(_mask_metric, higher_is_better=False)
_control = partial(Metric, higher_is_better=None, maximum=1.0)
_cost = partial(Metric, higher_is_better=False)
_STAGE_LABELS = {stage: stage.upper() if stage in ("sam", "llm") else stage for stage in PIPELINE_STAGES}


def _answer_metric(name: str, label: str, maximum: float = 1.0) -> Metric:
    """The mean score of answers; `harness.evaluation.text_metrics` scores each of them."""
    formula = partial(_mean, "score")
    return Metric(name, label, applies_to="question", formula=formula, maximum=maximum, chance=(shuffled(name),))


_GIOU = _mask_metric(  # mean IoU per expression, not the generalised IoU of boxes
    "giou",
    "gIoU",
    formula=partial(_mean, "iou"),
    has_families=True,
    chance=("giou_random_object", "giou_swapped_tokens"),
)
_FP_RATE = _lower_mask_metric(
    "fp_rate", "FP rate", formula=partial(_outside_intersection, "predicted_area"), has_families=True
)
_MASK_METRICS = (
    _GIOU,
    _mask_metric("giou_with_target", "gIoU with a target", formula=partial(_mean_with_target, "iou")),
    _mask_metric("giou_teacher_forced", "teacher-forced gIoU", formula=partial(_mean, "iou_teacher_forced")),
    _mask_metric("ciou", "cIoU", formula=_ciou),
    _FP_RATE,
    _lower_mask_metric("fn_rate", "FN rate", formula=partial(_outside_intersection, "target_area")),
    _lower_mask_metric("wrong_object_rate", "wrong-object rate", formula=_wrong_object),
    _mask_metric("no_target_accuracy", "no-target accuracy", formula=_no_target_accuracy),
    _mask_metric("target_accuracy", "target accuracy", formula=_target_accuracy),
    *(
        _mask_metric(f"precision_at_{percent}", f"P@{percent / 100:g}", formula=partial(_precision, percent))
        for percent in THRESHOLDS
    ),
)
_ANSWER_METRICS = (
    _answer_metric("accuracy", "accuracy"),
    _answer_metric("vqa_accuracy", "VQA accuracy"),
    _answer_metric("cider", "CIDEr", maximum=10.0),
)
_MASK_CONTROLS = (
    _control(shuffled("giou"), "shuffled gIoU"),
    _control("giou_swapped_tokens", "swapped-token gIoU"),
    _control("giou_random_object", "random-object gIoU"),
)
_COSTS = (
    _cost("tokens", "visual tokens", "per image", decimals=1),
    _cost("tokens_p95", "visual tokens p95", "per image", decimals=1),
    _cost("max_tokens", "maximum visual tokens", "per image", decimals=0),
    _cost("projector_parameters", "projector parameters", decimals=0, is_abbreviated=True),
    _cost("trainable_parameters", "trainable parameters", decimals=0, is_abbreviated=True),
    _cost("flops", "FLOPs", "per image", decimals=0, is_abbreviated=True),
    *(
        _cost(f"flops_{stage}", f"{label} FLOPs", "per image", decimals=0, is_abbreviated=True)
        for stage, label in _STAGE_LABELS.items()
    ),
    _cost("latency_ms", "latency", "ms", decimals=1),
    _cost("latency_p90_ms", "latency p90", "ms", decimals=1),
    *(_cost(f"latency_{stage}_ms", f"{label} latency", "ms", decimals=1) for stage, label in _STAGE_LABELS.items()),
    _cost("peak_memory_mib", "peak memory", "MiB", decimals=0),
    _cost("train_seconds", "training time", "s", decimals=0),
    _cost("eval_seconds", "evaluation time", "s", decimals=0),
    _cost("wall_seconds", "total time", "s", decimals=0),
)


def _shuffled_answers(metric: Metric) -> Metric:
    return _control(shuffled(metric.name), f"shuffled {metric.label}", maximum=metric.maximum)


def _of_family(metric: Metric, family: str) -> Metric:
    name, label = of_family(metric.name, family), f"{metric.label} {family}"
    return replace(metric, name=name, label=label, family=family, has_families=False, chance=())


METRICS = {
    metric.name: metric
    for metric in (
        *_MASK_METRICS,
        *_MASK_CONTROLS,
        *(each for metric in _ANSWER_METRICS for each in (metric, _shuffled_answers(metric))),
        *(_of_family(metric, family) for metric in (_GIOU, _FP_RATE) for family in FAMILIES),
        *_COSTS,
    )
}
"""Every numeric column, in the order of results.parquet."""
ANSWER_METRICS = tuple(metric.name for metric in _ANSWER_METRICS)
"""Metrics of generated answers to questions."""
SCORES = tuple(metric.name for metric in METRICS.values() if metric.formula is not None and metric.family is None)
"""Metrics that are computed from samples, so that arms can be compared sample by sample."""


def score(samples: pd.DataFrame) -> dict[str, float]:
    """Every metric of one cell that its samples allow, over all of them and by family.

    Args:
        samples: rows of one cell in the samples table.
    """
    samples = samples if "scoring" in samples else samples.assign(scoring=None)
    scores = {}
    for metric in (METRICS[name] for name in SCORES):
        rows = metric.select(samples)
        if rows.empty:
            continue
        scores[metric.name] = metric.compute(rows)
        for family, members in rows.groupby("family", sort=True) if metric.has_families else ():
            scores[of_family(metric.name, str(family))] = metric.compute(members)
    return scores


def aggregate_seeds(cells: pd.DataFrame) -> dict[str, float]:
    """Means of every measured column over the finished cells of one variant."""
    values = cells[[metric for metric in METRICS if metric in cells]].astype(float)
    return values.mean().to_dict()
