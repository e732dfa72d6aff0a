"""The table of metrics, from the registry of metrics; a metric without a definition here fails the build."""

import re
from collections.abc import Callable

from markup import escape, table
from sphinx.errors import ExtensionError

from harness.results.metrics import METRICS

DEFINITIONS = {
    r"giou": "mean IoU over expressions; not the generalized-box IoU of the same name",
    r"giou_with_target": "gIoU over the expressions with a target",
    r"giou_teacher_forced": "gIoU with [SEG] supplied instead of generated",
    r"ciou": "sum of intersections over sum of unions, over all expressions",
    r"fp_rate": "share of predicted pixels outside the target",
    r"fn_rate": "share of target pixels that are not predicted",
    r"wrong_object_rate": "share of expressions with a target whose prediction is not empty and has an IoU below 0.5",
    r"no_target_accuracy": "share of expressions without a target for which the predicted mask is empty",
    r"target_accuracy": "share of expressions with a target for which the predicted mask is not empty",
    r"precision_at_(\d+)": "share of expressions with a target whose IoU is at least {0} percent",
    r"giou_shuffled": "control: gIoU when each image is queried with the expressions of another image",
    r"giou_swapped_tokens": "control: gIoU when the LLM receives the visual tokens of another image",
    r"giou_random_object": "control: expected gIoU of answering with one object of the image, chosen at random",
    r"accuracy": "share of questions whose generated text equals the one correct answer",
    r"vqa_accuracy": "VQAv2's accuracy against the answers of ten annotators",
    r"cider": "CIDEr-D of captions; 1.0 is what papers print as 100",
    r"(accuracy|vqa_accuracy|cider)_shuffled": "control: the same score when the model processes another image",
    r"giou_(\w+)": "gIoU over the expressions of family `{0}`",
    r"fp_rate_(\w+)": "FP rate over the expressions of family `{0}`",
    r"tokens": "visual tokens per image, mean over images",
    r"tokens_p95": "visual tokens per image, 95th percentile over images",
    r"max_tokens": "upper bound of visual tokens per image that the projector declares",
    r"projector_parameters": "parameters of the projector",
    r"trainable_parameters": "parameters that receive gradients, of all parts",
    r"flops": "multiply-adds times two of matrix products and convolutions, one image and one expression",
    r"flops_(\w+)": "of these, in the stage `{0}`",
    r"latency_ms": "median time of one image and one expression, from decoded pixels to the mask or text",
    r"latency_p90_ms": "90th percentile of the same runs",
    r"latency_(\w+)_ms": "median time of the stage `{0}`",
    r"peak_memory_mib": "peak memory: of the allocator on CUDA, of the process on a CPU (MiB = 2^20 bytes)",
    r"train_seconds": "time of training",
    r"eval_seconds": "time of scoring",
    r"wall_seconds": "time of the cell, all stages",
}
"""Pattern of column names -> definition; the first pattern that matches a whole name applies."""
FAMILY = re.compile(r"(giou|fp_rate)_(?!shuffled|swapped|random|teacher|with_target)\w+")


def definition(name: str) -> str:
    """What a column holds.

    Raises:
        ExtensionError: no pattern matches.
    """
    for pattern, text in DEFINITIONS.items():
        found = re.fullmatch(pattern, name)
        if found:
            return escape(text.format(*found.groups()))
    raise ExtensionError(f"no definition of metric {name!r}; add one to docs/_ext/metric_table.py")


def metrics() -> str:
    """One row per metric; those of single families are summarized in one row each."""
    best = {True: "highest", False: "lowest", None: "-"}
    rows = [
        (f"`{name}`", escape(metric.label), metric.unit or "-", best[metric.higher_is_better], definition(name))
        for name, metric in METRICS.items()
        if not FAMILY.fullmatch(name)
    ]
    rows += [
        (f"`{score}_<family>`", f"{METRICS[score].label} of a family", "-", best[METRICS[score].higher_is_better], text)
        for score, text in (
            ("giou", "gIoU over the expressions of one family"),
            ("fp_rate", "FP rate over the expressions of one family"),
        )
    ]
    return table(("column", "heading", "unit", "best", "definition"), rows)


def families() -> str:
    """The families that have columns of their own."""
    prefix = "giou_"
    names = [name.removeprefix(prefix) for name in METRICS if FAMILY.fullmatch(name) and name.startswith(prefix)]
    return ", ".join(f"`{name}`" for name in names) + "\n"


CONTENT: dict[str, Callable[[], str]] = {"metrics": metrics, "families": families}
