"""One cell in, one result out: seeds, trains, scores, measures. Holds the only broad `except` of the harness."""

import json
import random
import time
import traceback
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import torch

from harness import metrics
from harness.assembly import Assembly, assemble, load_examples, prepare, words_of
from harness.checkpoint import Start, save
from harness.cost import Cost, PeakMemory, measure, num_parameters
from harness.device import default_device
from harness.environment import describe_environment
from harness.errors import DataError, HarnessError
from harness.evaluation import Evaluator
from harness.files import replace_file
from harness.gallery import save_gallery
from harness.progress import Progress
from harness.records import Row, RunFolder
from harness.study import Cell
from harness.training import Trainer
from projectors import IncompatibleError, ProjectorError

MEASURED_IMAGES = 32
"""From how many training images the size of visual tokens is told."""
CONTROL_IMAGES = 64
"""On how many of the scored images controls are measured: what must fall to chance needs no narrow interval."""


def run_cell(cell: Cell, folder: RunFolder, progress: Progress) -> Row:
    """Trains and scores one cell and writes its row and samples; a cell that breaks is a row that says why.

    Raises:
        DataError: a file of the dataset is not as it must be, which no other cell would be spared.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    row: Row = {
        **identity(cell),
        "started_at": started.isoformat(timespec="seconds"),
        "environment": json.dumps(describe_environment()),
    }
    samples = None
    try:
        measured, samples = train_and_score(cell, folder, progress)
        row |= {"status": "done", "reason": "", **measured}
    except IncompatibleError as error:
        row |= {"status": "skipped", "reason": str(error)}
    except DataError:
        raise
    except (HarnessError, ProjectorError) as error:
        row |= {"status": "failed", "reason": str(error)}
    except Exception:
        row |= {"status": "failed", "reason": traceback.format_exc()}
    row["wall_seconds"] = time.perf_counter() - clock
    folder.write_cell(row, samples)
    folder.bookmark(cell.id).unlink(missing_ok=True)
    return row


def identity(cell: Cell) -> Row:
    """The columns that name a cell."""
    spec = cell.spec
    return {
        "study": cell.study,
        "cell": cell.id,
        "arm": cell.arm,
        "point": json.dumps(cell.point, sort_keys=True),
        "seed": cell.seed,
        "projector": spec.projector["name"],
        "superpixels": spec.superpixels["name"] if spec.superpixels else "none",
        "vision_encoder": spec.vision_encoder.name,
        "llm": spec.llm.name,
        "spec": spec.model_dump_json(),
    }


def train_and_score(cell: Cell, folder: RunFolder, progress: Progress) -> tuple[Row, pd.DataFrame]:
    """Everything that is measured of a cell, and its samples."""
    spec, device = cell.spec, default_device()
    memory = PeakMemory(device)
    training = load_examples(spec, "train")
    testing = load_examples(spec, spec.evaluation.split)
    generator = seed_everything(cell.seed)
    words = words_of(training)
    start = None if spec.start is None else Start(spec, device)
    if start is not None:
        words = start.words_for(words)
    assembly = assemble(spec, words, device)
    if start is not None:
        start.give(assembly)
    # A mask head that does not learn is taught nothing by its masks, so none are drawn in training.
    prepare(assembly.batches, training, progress, with_view=assembly.segmenter.mask_head.learns)
    prepare(assembly.batches, testing, progress)
    segmenter, some = assembly.segmenter.eval(), [training[i] for i in range(min(MEASURED_IMAGES, len(training)))]
    if start is not None:
        segmenter.match(assembly.batches.features(some))
    weights = assembly.weights if start is None else (*assembly.weights, start.record)
    bookmark = folder.bookmark(cell.id)
    trainer = Trainer(assembly.segmenter, assembly.batches, spec.training, generator, progress.step, bookmark)
    curve = trainer.run(training)
    segmenter.eval().visual_rms.copy_(segmenter.tokens_rms(assembly.batches.features(some)))
    replace_file(folder.checkpoint(cell.id), lambda path: save(path, cell, assembly, words))

    clock = time.perf_counter()
    progress.note("scoring")
    batch_images, precision = spec.evaluation.batch_images, spec.training.precision
    evaluator = Evaluator(assembly.segmenter, assembly.batches, batch_images, precision)
    samples, tokens = evaluator.score(testing)
    chosen = sorted(random.Random(0).sample(range(len(testing)), min(CONTROL_IMAGES, len(testing))))
    controls = evaluator.controls([testing[i] for i in chosen])
    cost = measure(assembly.segmenter, assembly.batches, testing[0], spec.evaluation.latency_repeats, precision)
    save_gallery(folder, assembly.batches, testing[: spec.evaluation.gallery_images])
    row = {
        "train_seconds": trainer.seconds,
        "eval_seconds": time.perf_counter() - clock,
        "num_images": len(testing),
        "num_expressions": len(samples),
        "num_control_images": len(chosen),
        **metrics.score(samples),
        **controls,
        "giou_random_object": metrics.random_object_giou(testing),
        "tokens": float(np.mean(tokens)),
        "tokens_p95": float(np.percentile(tokens, 95)),
        **size_columns(assembly),
        **cost_columns(cost),
        "peak_memory_mib": memory.mib(),
        "weights": json.dumps([record.as_row() for record in weights]),
        "curve": json.dumps([asdict(point) for point in curve]),
    }
    keys = {"cell": cell.id, "arm": cell.arm, "seed": cell.seed, "split": spec.evaluation.split}
    return row, samples.assign(**keys)


def seed_everything(seed: int) -> torch.Generator:
    """Seeds every generator a library may draw from; returns the one that orders the training data."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def size_columns(assembly: Assembly) -> Row:
    """What is known of the model without running it."""
    return {
        "max_tokens": assembly.segmenter.projector.max_tokens,
        "projector_parameters": num_parameters(assembly.segmenter.projector),
        "trainable_parameters": num_parameters(assembly.segmenter, learning_only=True),
    }


def cost_columns(cost: Cost) -> Row:
    """Latency and FLOPs, whole and by stage."""
    return {
        "flops": sum(cost.stage_flops.values()),
        **{f"flops_{stage}": flops for stage, flops in cost.stage_flops.items()},
        "latency_ms": cost.latency_ms,
        **{f"latency_{stage}_ms": latency for stage, latency in cost.stage_ms.items()},
    }
