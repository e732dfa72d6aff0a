"""The columns of the two tables of a study."""

from harness.results.metrics import METRICS, SCORES

IDENTITY = (
    *("study", "cell", "arm", "point", "seed", "status", "stage", "failed_stage", "reason"),
    *("projector", "superpixels", "vision_encoder"),
)
"""`status` is done, skipped, failed or unfinished; `stage` is the last stage of the cell that finished, `failed_stage`
the one that raised."""
PROVENANCE = (
    *("steps", "llm", "num_images", "num_expressions", "num_control_images", "latency_runs", "latency_round"),
    *("micro_batch_images", "has_halved_micro_batch", "started_at", "command", "trial", "code"),
)
"""`micro_batch_images` is the number of images in a device's memory together at the end of training, which is less than
the setting if a step exceeded the memory (`has_halved_micro_batch`); `latency_round` is equal for cells that were timed
in turns; `code` has the fingerprints of the code that trained and of the code that scored the cell."""
DOCUMENTS = ("spec", "weights", "environment", "curve", "early")
"""JSON texts; `early` has steps, budget and scores of the budgets before the last."""
COLUMNS = (*IDENTITY, *PROVENANCE, *METRICS, *DOCUMENTS)
"""Columns of results.parquet, in order; any further column of a cell follows them."""

SAMPLE_COLUMNS = (
    *("cell", "arm", "seed", "steps", "image_id", "expression_id", "text", "family", "domain", "split"),
    *("iou", "iou_teacher_forced", "intersection", "union", "predicted_area", "target_area", "predicted_seg"),
    *("intersection_teacher_forced", "predicted_area_teacher_forced"),
    *("elongation", "occlusion", "height", "width", "prediction_rle", "target_rle"),
    *("scoring", "score", "generated_text", "references"),
)
"""Columns of samples.parquet; mask columns are empty for questions, and the last four for expressions."""

BUDGET_COLUMNS = ("cell", "arm", "point", "seed", "budget", "steps", "num_expressions", *SCORES)
"""Columns of budgets.parquet, which has one row per cell and budget; `budget` is a share of the training steps."""
