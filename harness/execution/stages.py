"""The stages of one cell: training, scoring, cost and gallery; each returns its columns of the cell's row.

Stages can run in different processes: a model that was trained earlier is loaded from its checkpoint.
"""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from harness import data
from harness.assembly.assembly import Assembly, assemble, build_vocabulary, load_examples, prepare
from harness.assembly.checkpoint import Initialization, load, reload, save
from harness.data.example import Example
from harness.evaluation.cost import count_flops, num_parameters
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.gallery import save_gallery
from harness.evaluation.latency import Latency, time_in_turns
from harness.evaluation.metrics import random_object_giou
from harness.evaluation.pipeline import Pipeline
from harness.model.config import LINEAR
from harness.model.linear.reader import LinearReader
from harness.monitoring.progress import Progress
from harness.results.metrics import score
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell
from harness.system.device import default_device
from harness.system.files import replace_file
from harness.training.linear_fit import LinearFit, check_queries
from harness.training.ranks import Ranks
from harness.training.trainer import CurvePoint, Trainer
from harness.training.validation import Validation

MEASURED_IMAGES = 32
"""Training images used to measure the RMS of visual tokens."""
CONTROL_IMAGES = 64
"""Scored images used for the controls, whose scores need only be compared with chance."""
TIMED_IMAGES = 4
"""Scored images used to measure latency, in turn."""


class Stages:
    """The stages of one cell.

    Args:
        folder: for the checkpoint and the gallery.
        max_images: only the first images of each split are used; None for all.
    """

    def __init__(self, cell: Cell, folder: RunFolder, progress: Progress, max_images: int | None = None) -> None:
        self.cell = cell
        self.spec = cell.spec
        self.folder = folder
        self.progress = progress
        self.max_images = max_images
        self.device = default_device()
        self._trained: Assembly | None = None

    @cached_property
    def training(self) -> Sequence[Example]:
        """The training split."""
        return _first(load_examples(self.spec, "train"), self.max_images)

    @cached_property
    def testing(self) -> Sequence[Example]:
        """The split used for evaluation."""
        return _first(load_examples(self.spec, self.spec.evaluation.split), self.max_images)

    @cached_property
    def validation(self) -> Sequence[Example]:
        """Images of the validation split, which are measured during training; none without such a split."""
        names = data.get(self.spec.data["name"]).Config.model_validate(self.spec.data).splits
        found = [name for name in names if name.startswith("val") and name != self.spec.evaluation.split]
        count = self.spec.training.validation_images if self.max_images is None else self.max_images
        return _first(load_examples(self.spec, found[0]), count) if found and count else []

    @property
    def assembly(self) -> Assembly:
        """The trained model, with the caches filled for the evaluation images."""
        if self._trained is None:
            self._trained = load(self.folder.checkpoint(self.cell.id), self.device).assembly
            prepare(self._trained.batches, self.testing, self.progress.note)
        return self._trained

    def train(self, ranks: Ranks | None = None) -> Row:
        """Trains the cell from its seed, or resumes its training checkpoint, and writes its checkpoint.

        Args:
            ranks: the processes that train the cell together, each with stages of its own; the first one writes the
                checkpoint. None to train in this process alone.
        """
        spec, training, ranks = self.spec, self.training, ranks or Ranks()
        if spec.llm.name == LINEAR:
            return self._fit()
        generator = seed_everything(self.cell.seed)
        words = build_vocabulary(training)
        initialization = None if spec.init_from is None else Initialization(spec, self.device)
        if initialization is not None:
            words = initialization.vocabulary_for(words)
        assembly = assemble(spec, words, self.device)
        if initialization is not None:
            initialization.load_into(assembly)
        segmenter, batches = assembly.segmenter.eval(), assembly.batches
        # A frozen mask decoder gives no gradient, so training requires no mask inputs.
        prepare(batches, training, self.progress.note, with_mask_inputs=segmenter.mask_decoder.learns)
        prepare(batches, self.testing, self.progress.note)
        measured = _first(training, MEASURED_IMAGES)
        if initialization is not None:
            segmenter.match_token_scale(batches.features(measured))
        weights = assembly.weights if initialization is None else (*assembly.weights, initialization.record)
        validate = None
        if self.validation and ranks.is_first:
            prepare(batches, self.validation, self.progress.note, with_mask_inputs=False)
            validate = Validation(segmenter, batches, self.validation, spec.training)

        def save_to(path: Path) -> None:
            was_training = segmenter.training
            segmenter.eval().visual_rms.copy_(segmenter.tokens_rms(batches.features(measured)))
            replace_file(path, lambda part: save(part, self.cell, assembly, words))
            segmenter.train(was_training)

        def on_budget(steps: int) -> None:
            if ranks.is_first:
                save_to(self.folder.budget_checkpoint(self.cell.id, steps))

        training_checkpoint = self.folder.training_checkpoint(self.cell.id)
        trainer = Trainer(
            segmenter,
            batches,
            spec.training,
            generator,
            self.progress.step,
            training_checkpoint=training_checkpoint,
            ranks=ranks,
            validate=validate,
            on_budget=on_budget,
        )
        curve = trainer.run(training)
        micro_batches = ranks.gather(trainer.micro_batch_images, self.device)
        has_halved = ranks.gather(trainer.has_halved_micro_batch, self.device)
        if not ranks.is_first:
            return {}
        segmenter.eval()
        save_to(self.folder.checkpoint(self.cell.id))
        self._trained = assembly
        return {
            "steps": spec.training.steps,
            "train_seconds": trainer.seconds,
            "micro_batch_images": int(min(micro_batches)),
            "has_halved_micro_batch": any(has_halved),
            "max_tokens": segmenter.projector.max_tokens,
            "projector_parameters": num_parameters(segmenter.projector),
            "trainable_parameters": num_parameters(segmenter, learning_only=True),
            "weights": json.dumps([record.as_row() for record in weights]),
            "curve": json.dumps([_measured(point) for point in curve]),
        }

    def _fit(self) -> Row:
        """Fits a cell with the linear reader, and writes its checkpoint."""
        check_queries(self.training, self.testing)
        seed_everything(self.cell.seed)
        words = build_vocabulary(self.training)
        assembly = assemble(self.spec, words, self.device)
        reader = assembly.segmenter.eval()
        assert isinstance(reader, LinearReader)
        prepare(assembly.batches, self.training, self.progress.note, with_mask_inputs=False)
        prepare(assembly.batches, self.testing, self.progress.note)
        clock = time.perf_counter()
        fit = LinearFit(reader, assembly.batches, self.progress.note)
        fit.run(self.training)
        seconds = time.perf_counter() - clock
        replace_file(self.folder.checkpoint(self.cell.id), lambda part: save(part, self.cell, assembly, words))
        self._trained = assembly
        return {
            "steps": self.spec.training.steps,
            "train_seconds": seconds,
            "max_tokens": reader.projector.max_tokens,
            "projector_parameters": num_parameters(reader.projector, learning_only=True),
            "trainable_parameters": num_parameters(reader, learning_only=True),
            "weights": json.dumps([record.as_row() for record in assembly.weights]),
            "curve": json.dumps(fit.curve),
        }

    def score(self) -> tuple[Row, pd.DataFrame, pd.DataFrame]:
        """Scores the split and the controls; returns their columns, and one row per expression or question.

        The second table has the samples of the budgets before the last.
        """
        clock = time.perf_counter()
        self.progress.note("scoring")
        spec, testing, assembly = self.spec, self.testing, self.assembly
        evaluation = spec.evaluation
        evaluator = Evaluator(assembly.segmenter, assembly.batches, evaluation.batch_images, spec.training.precision)
        is_fitted = spec.llm.name == LINEAR
        early, early_samples = ([], []) if is_fitted else self._score_early(evaluator)
        samples, tokens = evaluator.score(testing)
        if is_fitted:
            early, early_samples = self._repeated(samples)
        chosen = sorted(random.Random(0).sample(range(len(testing)), min(CONTROL_IMAGES, len(testing))))
        controls = evaluator.controls([testing[i] for i in chosen])
        row = {
            "eval_seconds": time.perf_counter() - clock,
            "num_images": len(testing),
            "num_expressions": len(samples),
            "num_control_images": len(chosen),
            **score(samples),
            **controls,
            "giou_random_object": random_object_giou(testing),
            "tokens": float(np.mean(tokens)),
            "tokens_p95": float(np.percentile(tokens, 95)),
            "early": json.dumps(early),
        }
        keys = {"cell": self.cell.id, "arm": self.cell.arm, "seed": self.cell.seed, "split": evaluation.split}
        samples = samples.assign(steps=spec.training.steps, **keys)
        return row, samples, pd.concat([each.assign(**keys) for each in early_samples] or [samples.iloc[:0]])

    def _score_early(self, evaluator: Evaluator) -> tuple[list[Row], list[pd.DataFrame]]:
        """Scores and samples of the budgets before the last, without controls; then the trained model is loaded."""
        training, found, tables = self.spec.training, list[Row](), list[pd.DataFrame]()
        for steps, budget in list(training.budget_steps.items())[:-1]:
            self.progress.note(f"scoring the model of {steps} steps")
            reload(self.folder.budget_checkpoint(self.cell.id, steps), self.assembly)
            samples, _ = evaluator.score(self.testing)
            found.append({"budget": budget, "steps": steps, "num_expressions": len(samples), **score(samples)})
            tables.append(samples.assign(steps=steps))
        if found:
            reload(self.folder.checkpoint(self.cell.id), self.assembly)
        return found, tables

    def _repeated(self, samples: pd.DataFrame) -> tuple[list[Row], list[pd.DataFrame]]:
        """The results of `_score_early` for a model that takes no steps: the same at every budget."""
        budgets = list(self.spec.training.budget_steps.items())[:-1]
        scores = {"num_expressions": len(samples), **score(samples)}
        found: list[Row] = [{"budget": budget, "steps": steps, **scores} for steps, budget in budgets]
        return found, [samples.assign(steps=steps) for steps, _ in budgets]

    def cost(self) -> Row:
        """FLOPs, and the latency of this cell alone."""
        self.progress.note("measuring cost")
        pipelines, precision = self.pipelines(), self.spec.training.precision
        flops = count_flops(pipelines[0], precision)
        repeats = self.spec.evaluation.latency_repeats
        # A preliminary value; `harness.execution.timing` replaces it by one that is comparable between cells.
        (latency,) = time_in_turns([pipelines], repeats, [precision], max_factor=1, warm_up=1)
        columns = {f"flops_{stage}": value for stage, value in flops.items()}
        return {"flops": sum(flops.values()), **columns, **latency_columns(latency), "latency_round": None}

    def pipelines(self) -> list[Pipeline]:
        """The trained model on each image used for timing; on one image in a preflight."""
        assembly, count = self.assembly, TIMED_IMAGES if self.max_images is None else 1
        return [
            Pipeline(assembly.segmenter.eval(), assembly.batches, example) for example in _first(self.testing, count)
        ]

    def illustrate(self) -> Row:
        """Saves images for the report's gallery; returns no columns."""
        save_gallery(self.folder, self.assembly.batches, self.testing, self.spec.evaluation.gallery_images)
        return {}


def _measured(point: CurvePoint) -> dict[str, float]:
    """A point of the curve without the values that it lacks."""
    return {name: value for name, value in asdict(point).items() if value is not None}


def latency_columns(latency: Latency) -> Row:
    """Columns for the latency, in total and by stage, over all timed runs."""
    return {
        "latency_ms": latency.median_ms,
        "latency_p90_ms": latency.p90_ms,
        "latency_runs": latency.num_runs,
        **{f"latency_{stage}_ms": value for stage, value in latency.stage_ms.items()},
    }


def seed_everything(seed: int) -> torch.Generator:
    """Seeds the global generators of all libraries; returns the generator that orders the training data."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def _first(examples: Sequence[Example], count: int | None) -> Sequence[Example]:
    """The first `count` images, or all of them."""
    return examples if count is None else [examples[i] for i in range(min(count, len(examples)))]
