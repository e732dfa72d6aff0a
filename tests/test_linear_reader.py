"""The linear reader: its only optimum, its parts against plain definitions, and cells from a study to a row."""

import json
from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from projector_cases import DIMS, build, features, required
from sams import random_sam
from tiny import FRAME, GRID, VISION, WORDS, FixedBatches

import projectors
from harness.assembly.checkpoint import load
from harness.data.example import Example, Expression, Question, encode, encode_ids
from harness.data.frame import Frame
from harness.errors import StudyError
from harness.evaluation.evaluator import Evaluator
from harness.execution.cell import run_cell
from harness.execution.stages import Stages
from harness.model.config import LLMConfig
from harness.model.linear.bag_of_words import BagOfWords, word_counts
from harness.model.linear.frozen_tokens import FrozenTokens, FrozenVisualTokens, positions_of
from harness.model.linear.masks import RegionMasks, TokenPointMasks, token_points
from harness.model.linear.reader import LinearReader
from harness.model.mask_decoder.decoder import ImageEmbedding
from harness.model.mask_decoder.point_prompted import PointPromptedMaskDecoder
from harness.planning.requirements import verdict
from harness.study.study import Cell, Study
from harness.system.uninitialized import uninitialized
from harness.training.linear_fit import THRESHOLDS, LinearFit, check_queries, regions_of
from projectors import REFERENCE_DIMS, Dims, IncompatibleError
from tests.small_study import PRESET, STUDY, quiet, write_study

SVP = {"position": {"name": "none"}, "aggregation": {"name": "none"}}
READABLE = {
    "linear": {},
    "mlp": {},
    "pooling": {"tokens": 16},
    "pixel_shuffle": {"scale": 2},
    "prumerge": {"nearest": 2},
    "prumerge_plus": {"nearest": 2},
    "subobject": {},
    "svp": SVP,
    "tome": {"tokens": 9},
}
"""Projectors whose tokens are a fixed function of the patches up to their projection, with settings for `DIMS`."""


def linear_llm(words: list[str] = WORDS) -> BagOfWords:
    return BagOfWords(LLMConfig(name="linear"), words)


# ---- words


def test_words_are_counted_and_unknown_ones_ignored() -> None:
    llm = linear_llm(["red", "left", "the"])
    counts = word_counts(llm, ["the red red square", "left"])
    names = llm.tokenizer.convert_ids_to_tokens(range(llm.width))
    assert [dict(zip(names, row, strict=True)) for row in counts.tolist()] == [
        {"[PAD]": 1, "[UNK]": 0, "left": 0, "red": 2, "the": 1},
        {"[PAD]": 1, "[UNK]": 0, "left": 1, "red": 0, "the": 0},
    ]


@pytest.mark.parametrize("setting", [{"width": 32}, {"template": "{expression} ."}, {"prompt": "chat"}])
def test_settings_of_an_llm_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} cannot take effect on the linear reader"):
        LLMConfig(name="linear", **setting)


# ---- tokens


@pytest.mark.parametrize("name", sorted(READABLE))
def test_frozen_tokens_are_those_that_the_projection_takes(name: str) -> None:
    projector = build(name, READABLE[name])
    batch = required(features(), projector)
    expected, project = projector(batch), deepcopy(projector.project)
    frozen = FrozenTokens(projector, name)
    tokens = frozen(batch)
    assert tokens.embeds.shape[-1] == frozen.width
    vectors = tokens.embeds[..., : frozen.token_width].double()
    projected = project(vectors) * tokens.mask[..., None]
    torch.testing.assert_close(projected, expected.embeds, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens.mask, expected.mask)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("name", sorted({*projectors.names()} - ({*READABLE} - {"svp"})))
def test_projectors_with_other_parts_to_train_are_incompatible(name: str) -> None:
    kind = projectors.get(name)
    with uninitialized():
        projector = kind(kind.Config(), REFERENCE_DIMS)
    with pytest.raises(IncompatibleError, match="fixed function of the patches up to their projection"):
        FrozenTokens(projector, name)


def test_published_weights_of_a_projection_are_refused() -> None:
    projector = build("mlp", {"weights": "mm_projector.bin"})
    with pytest.raises(IncompatibleError, match=r"mlp\.weights has no effect"):
        FrozenTokens(projector, "mlp")


def test_positions_equal_a_plain_loop() -> None:
    batch = features()
    projector = build("tome", READABLE["tome"])
    regions = projector(required(batch, projector)).regions.float()
    found = positions_of(regions, batch.patch_mask, DIMS.grid)
    for image, token in np.ndindex(*found.shape[:2]):
        valid = batch.patch_mask[image].reshape(DIMS.grid).numpy()
        shape = valid.any(1).sum(), valid.any(0).sum()
        own = regions[image, token].reshape(DIMS.grid).numpy()
        if not own.any():
            assert not found[image, token].any()
            continue
        places = [(x + 0.5, y + 0.5, own[y, x]) for y, x in np.argwhere(own)]
        weight = sum(w for *_, w in places)
        x, y = (sum(w * at[k] / shape[1 - k] for *at, w in places) / weight for k in (0, 1))
        spread = [
            (sum(w * (at[k] / shape[1 - k] - mean) ** 2 for *at, w in places) / weight) ** 0.5
            for k, mean in ((0, x), (1, y))
        ]
        expected = [x, y, x * x, y * y, x * y, *spread, (weight / valid.sum()) ** 0.5]
        np.testing.assert_allclose(found[image, token], expected, atol=1e-3)


# ---- fit


def fixed(tokens: int = 16) -> tuple[LinearReader, FixedBatches]:
    """A reader of two images of 4 x 4 patches, with one token per patch by default."""
    kind, llm = projectors.get("pooling"), linear_llm()
    dims = Dims(vision=VISION, language=VISION, grid=GRID, frame=FRAME, decoder=32)
    projector = FrozenTokens(kind(kind.Config(tokens=tokens), dims), "pooling")
    return LinearReader(projector, llm, RegionMasks(GRID)), FixedBatches(llm)


def with_absent(batches: FixedBatches) -> list[Example]:
    absent = Expression("the green star", "absent", ())
    return [replace(one, expressions=(*one.expressions, absent)) for one in batches.examples]


def naive_objective(fit: LinearFit, examples: list[Example], values: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy and the ridge penalty, expression by expression and token by token."""
    reader = fit.reader
    weight, no_target = values[: reader.weight.numel()].view_as(reader.weight), values[reader.weight.numel() :]
    tokens = reader.projector(fit.batches.features(examples))
    losses = []
    for i, example in enumerate(examples):
        vectors = ((tokens.embeds[i] - reader.mean) / reader.scale).double()
        for expression in example.expressions:
            words = word_counts(reader.words, [expression.text])[0].double()
            target = example.mask(expression).reshape(4, 8, 4, 8).mean((1, 3)).ravel()
            scale = words @ weight
            scores = torch.stack([scale @ vector for vector in vectors] + [words @ no_target])
            correct = [t for t in range(16) if target[t] > 0] or [16]
            losses.append(-scores.log_softmax(0)[correct].mean())
    return torch.stack(losses).mean() + fit.ridge / 2 * values.square().sum()


def test_the_fit_finds_the_optimum_that_a_plain_loop_finds_from_random_weights() -> None:
    reader, batches = fixed()
    examples = with_absent(batches)
    fit = LinearFit(reader, batches, lambda _: None)
    fit.run(examples)
    found = torch.cat([reader.weight.detach().flatten(), reader.no_target.detach()])
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(found.shape, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([values], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = naive_objective(fit, examples, values)
        loss.backward()
        return loss

    optimizer.step(closure)
    # The gradient is computed in float32, and in some directions only the ridge, which is small, curves the objective.
    torch.testing.assert_close(found, values.detach().float(), atol=5e-2, rtol=1e-2)
    assert fit.curve[-1]["loss"] == pytest.approx(float(naive_objective(fit, examples, values.detach())), abs=1e-5)


def test_a_fitted_reader_finds_the_targets_of_its_training_images_and_rejects_absent_ones() -> None:
    reader, batches = fixed()
    examples = with_absent(batches)
    LinearFit(reader, batches, lambda _: None).run(examples)
    queries = [one.expressions for one in examples]
    for example, prediction in zip(
        examples, Evaluator(reader, batches, 2, "float32").predict(examples, queries), strict=True
    ):
        assert prediction.predicted_seg.tolist() == [True, True, False]
        for expression, mask in zip(example.expressions[:2], prediction.masks, strict=False):
            target = example.mask(expression)
            assert (mask & target).sum() / (mask | target).sum() > 0.9


def test_data_with_questions_or_without_expressions_is_incompatible() -> None:
    _, batches = fixed()
    asked = [replace(batches.examples[0], questions=(Question("what", "all", "a", ("a",), "vqa"),))]
    for training, scored in ((asked, batches.examples), (batches.examples, asked)):
        with pytest.raises(IncompatibleError, match="the data has questions"):
            check_queries(training, scored)
    with pytest.raises(IncompatibleError, match="the training split has none"):
        check_queries([replace(one, expressions=()) for one in batches.examples], batches.examples)
    check_queries(batches.examples, batches.examples)


def test_a_fit_that_is_stopped_early_says_so(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    reader, batches = fixed()
    LinearFit(reader, batches, lambda _: None).run(with_absent(batches))
    assert "not the optimum" not in caplog.text
    monkeypatch.setattr("harness.training.linear_fit.MAX_ITERATIONS", 1)
    LinearFit(reader, batches, lambda _: None).run(with_absent(batches))
    assert "stopped after 1 iterations" in caplog.text


def test_a_target_without_pixels_in_the_frame_is_not_fitted() -> None:
    """The expression would otherwise teach that nothing is there."""
    reader, batches = fixed()
    fits = []
    for texts in ([], ["the star"]):
        fit = LinearFit(reader, batches, lambda _: None)
        examples = [
            replace(
                one,
                objects=(*one.objects, encode(np.zeros(one.size, bool))),
                expressions=(*one.expressions, *(Expression(text, "all", (len(one.objects) + 1,)) for text in texts)),
            )
            for one in batches.examples
        ]
        fit.run(examples)
        fits.append(reader.no_target.detach().clone())
    torch.testing.assert_close(*fits, atol=1e-3, rtol=0)


@pytest.mark.parametrize("has_superpixels", [True, False])
def test_correct_tokens_are_the_best_of_all_sets(has_superpixels: bool) -> None:
    ids = np.zeros((16, 16), np.uint8)
    ids[2:9, 3:13], ids[11:15, 1:6] = 1, 2
    expressions = (Expression("a", "all", (1,)), Expression("b", "all", (1, 2)), Expression("c", "all", ()))
    example = Example("one", np.zeros((16, 16, 3), np.uint8), encode_ids(ids), expressions)
    labels = torch.from_numpy(np.kron(np.arange(9).reshape(3, 3) % 5, np.ones((6, 6), int))[:16, :16])[None]
    regions = torch.eye(5)[torch.arange(16) % 5].T[None]
    tokens = FrozenVisualTokens(torch.zeros(1, 5, 1), torch.ones(1, 5, dtype=torch.bool), regions, labels)
    tokens = tokens if has_superpixels else replace(tokens, superpixels=None)
    cells = (
        labels[0]
        if has_superpixels
        else (torch.arange(16) % 5).reshape(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
    )
    found = regions_of(example, tokens, 0, (4, 4), 16)
    for row, expression in zip(found.correct(), expressions, strict=True):
        target = example.mask(expression)
        sets = [one for size in range(6) for one in combinations(range(5), size)]
        ious = [_iou(np.isin(cells, one), target) for one in sets]
        chosen = np.flatnonzero(row[:-1] > 0)
        assert _iou(np.isin(cells, chosen), target) == pytest.approx(max(ious))
        assert row.sum() == pytest.approx(1)
        assert (row[-1] == 1) == (not expression.targets)
        selected = np.zeros((3, 5), bool)
        selected[:, chosen] = True
        assert found.overlaps(selected)[expressions.index(expression)] == pytest.approx(max(ious))


def _iou(prediction: np.ndarray, target: np.ndarray) -> float:
    union = (prediction | target).sum()
    return float((prediction & target).sum() / union) if union else 1.0


# ---- masks


def test_masks_are_the_union_of_selected_superpixels_of_the_own_image() -> None:
    labels = torch.stack([torch.arange(16).reshape(4, 4) % 3, torch.full((4, 4), 1)])
    labels[1, 3] = -1
    tokens = FrozenVisualTokens(torch.zeros(2, 3, 1), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, 4), labels)
    chosen = torch.tensor([[True, False, True], [False, True, False], [True, True, False]])
    image = torch.tensor([0, 1, 0])
    masks = RegionMasks((2, 2)).prompts(tokens, chosen, torch.zeros(3, 3), image) > 0
    for row, which, mask in zip(chosen, image, masks, strict=True):
        expected = np.isin(labels[which], np.flatnonzero(row))
        assert np.array_equal(mask.numpy(), expected)


def test_masks_of_other_tokens_cover_the_patches_of_which_they_represent_half() -> None:
    regions = torch.tensor([[[1.0, 0.5, 0.0, 0.0], [0.0, 0.3, 0.4, 0.0], [0.0, 0.0, 0.4, 1.0]]])
    tokens = FrozenVisualTokens(torch.zeros(1, 3, 1), torch.ones(1, 3, dtype=torch.bool), regions)
    masks = RegionMasks((2, 2)).prompts(
        tokens, torch.tensor([[True, True, False]]), torch.zeros(1, 3), torch.zeros(1, dtype=torch.long)
    )
    assert (masks > 0).int().tolist() == [[[1, 1], [0, 0]]]


@pytest.mark.parametrize("name", ["pooling", "tome", "svp"])
def test_the_point_of_a_token_lies_in_its_region(name: str) -> None:
    projector = build(name, READABLE[name])
    batch = required(features(), projector)
    tokens = FrozenTokens(projector, name)(batch)
    points = token_points(tokens, DIMS.grid)
    for image, token in np.ndindex(*tokens.mask.shape):
        if not tokens.mask[image, token]:
            continue
        x, y = points[image, token].tolist()
        if name == "svp":
            assert batch.superpixels[image, int(y * DIMS.frame), int(x * DIMS.frame)] == token
        else:
            assert tokens.regions[image, token, int(y * 6) * 6 + int(x * 6)] > 0


def test_a_sam_draws_the_maximum_of_its_masks_at_the_points_of_the_best_tokens() -> None:
    model = random_sam()
    decoder = PointPromptedMaskDecoder(model.sam.prompt_encoder, model.sam.mask_decoder)
    masks, side = TokenPointMasks(decoder, (2, 2)), decoder.prompt_encoder.input_image_size[0]
    tokens = FrozenVisualTokens(torch.zeros(1, 4, 1), torch.ones(1, 4, dtype=torch.bool), torch.eye(4)[None])
    chosen, scores = torch.tensor([[True, False, False, True]]), torch.tensor([[0.1, 0.9, 0.2, 0.3]])
    zero = torch.zeros(1, dtype=torch.long)
    prompts = masks.prompts(tokens, chosen, scores, zero)
    expected = torch.tensor([[0.75, 0.75], [0.25, 0.25]]) * side - 0.5
    torch.testing.assert_close(prompts[0, :2], expected)
    assert prompts[0, 2:].isnan().all()
    embedding = torch.randn(1, decoder.width, *decoder.location_grid, generator=torch.Generator().manual_seed(0))
    both = decoder.best_at_points(ImageEmbedding(embedding), expected, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(masks(embedding, prompts, zero)[0], both.amax(0))


def test_the_threshold_selects_tokens_relative_to_the_most_probable_one() -> None:
    reader, _ = fixed()
    reader.threshold.fill_(0.5)
    scores = torch.tensor([[0.4, 0.2, 0.19, 0.0]]).log()
    assert reader.choose(scores).tolist() == [[True, True, False, False]]
    reader.threshold.fill_(1.0)
    assert reader.choose(scores).tolist() == [[True, False, False, False]]


# ---- cells


ARMS = """\
arms:
  pooling: {projector: {name: pooling, tokens: 16}}
  means: {projector: {name: svp, position: none, aggregation: none}}
  sspe: {projector: {name: svp, aggregation: ssa, position: bbox_mlp}}
  pooling_sam: {projector: {name: pooling, tokens: 4}, mask_decoder: {name: sam-scenes, prompt: points}}
seeds: [0, 1]
objectives: {giou: maximize}
baseline: pooling
"""


def linear_cells(tmp_path: Path, **data: object) -> list[Cell]:
    """The cells of `ARMS` on the backbone and the data of the fixture `cells`."""
    text = (tmp_path / "study.yaml").read_text()
    start, end, arms = (text.index(part) for part in ("  llm:", "  superpixels:", "arms:"))
    path = tmp_path / "linear.yaml"
    path.write_text(f"{text[:start]}  llm: linear\n{text[end:arms]}{ARMS}")
    settings = [f"base.data.{key}={value}" for key, value in data.items()]
    return Study.from_yaml(path, ["training.location_loss=1.0", *settings]).cells()


def of(found: list[Cell], arm: str, seed: int = 0) -> Cell:
    return next(cell for cell in found if (cell.arm, cell.seed) == (arm, seed))


@pytest.mark.parametrize("arm", ["pooling", "means", "pooling_sam"])
@pytest.mark.usefixtures("cells")
def test_a_cell_runs_through_all_stages_and_its_checkpoint_predicts_the_same(folder, tmp_path, arm) -> None:
    cell = of(linear_cells(tmp_path), arm)
    row = run_cell(cell, folder, quiet())
    assert row["status"] == "done", row["reason"]
    assert {"giou", "giou_swapped_tokens", "giou_shuffled", "flops", "latency_ms", "tokens"} < set(row)
    assert row["projector_parameters"] == 0
    losses = [point["loss"] for point in json.loads(row["curve"])]
    assert losses[-1] <= losses[0]
    assert [each["giou"] for each in json.loads(row["early"])] == [row["giou"]], "every budget has the same model"
    stages, kept = Stages(cell, folder, quiet()), pd.read_parquet(folder.cell_samples(cell.id))
    trained, config = stages.assembly, cell.spec.evaluation
    evaluator = Evaluator(trained.segmenter, trained.batches, config.batch_images, cell.spec.training.precision)
    again, _ = evaluator.score(stages.testing)
    for column in ("prediction_rle", "predicted_seg", "iou_teacher_forced"):
        assert again[column].tolist() == kept[column].tolist()
    assert isinstance(load(folder.checkpoint(cell.id), torch.device("cpu")).assembly.segmenter, LinearReader)


@pytest.mark.usefixtures("cells")
def test_the_threshold_of_points_is_chosen_on_the_masks_that_the_reader_draws(folder, tmp_path) -> None:
    """For every threshold, the overlaps are those of the reader's own masks, expression by expression."""
    stages = Stages(of(linear_cells(tmp_path), "pooling_sam"), folder, quiet())
    stages.train()
    trained, examples = stages.assembly, list(stages.testing)
    reader, batches = trained.segmenter, trained.batches
    tokens, queries = reader.projector(batches.features(examples)), [one.expressions for one in examples]
    query = batches.query(queries)
    with torch.no_grad():
        scores, _ = reader.log_probabilities(tokens, query)
        found = LinearFit(reader, batches, lambda _: None)._overlaps_of_points(reader.masks, examples, tokens, scores)
        for threshold, overlaps in zip(THRESHOLDS, found, strict=True):
            reader.threshold.fill_(threshold)
            masks = reader.answer(tokens, tokens.embeds, batches.mask_inputs(examples), query).mask_logits > 0
            pairs = [(example, one) for example in examples for one in example.expressions]
            for mask, (example, expression), overlap in zip(masks.numpy(), pairs, overlaps, strict=True):
                frame, side = Frame.of(example.size, batches.mask_frame), mask.shape[0]
                target = frame.place_mask(example.mask(expression))
                target = target.reshape(side, -1, side, target.shape[0] // side).mean((1, 3)) >= 0.5
                union = (mask | target).sum()
                assert overlap == pytest.approx((mask & target).sum() / union if union else 1.0)
    assert len({tuple(row) for row in found.tolist()}) > 1


@pytest.mark.usefixtures("cells")
def test_no_training_step_is_planned(tmp_path) -> None:
    spec = of(linear_cells(tmp_path), "pooling").spec
    assert "training step" not in verdict([spec])


@pytest.mark.usefixtures("cells")
def test_seeds_give_the_same_scores(folder, tmp_path) -> None:
    found = linear_cells(tmp_path)
    first, second = (run_cell(of(found, "means", seed), folder, quiet()) for seed in (0, 1))
    assert first["giou"] == second["giou"]


@pytest.mark.usefixtures("cells")
def test_a_projector_with_trained_parts_is_skipped_with_a_reason(folder, tmp_path) -> None:
    row = run_cell(of(linear_cells(tmp_path), "sspe"), folder, quiet())
    assert row["status"] == "skipped"
    assert "svp also trains position, aggregation" in row["reason"]


@pytest.mark.usefixtures("cells")
def test_the_reader_beats_chance_and_falls_to_it_without_its_tokens_or_expressions(folder, tmp_path) -> None:
    """DINOv2 keeps the colours of superpixels that follow objects, and a linear model learns them from 96 images."""
    found = linear_cells(tmp_path, train_images=96, test_images=24, expressions_per_image=12)
    cell = of(found, "means")
    pretrained = {"name": "dinov2-small", "frame": 112, "layer": 8}
    encoder = cell.spec.vision_encoder.model_copy(update=pretrained)
    spec = cell.spec.model_copy(update={"superpixels": {"name": "oracle", "count": 24}, "vision_encoder": encoder})
    row = run_cell(replace(cell, spec=spec), folder, quiet())
    assert row["status"] == "done", row["reason"]
    samples = pd.read_parquet(folder.cell_samples(row["cell"]))
    has_target = samples["target_area"] > 0
    single = samples[has_target & samples["family"].isin(["attribute", "absolute"])]
    assert single["iou_teacher_forced"].mean() > row["giou_random_object"] + 0.2
    assert row["giou"] > row["giou_swapped_tokens"] + 0.2
    assert row["giou_shuffled"] < row["giou_random_object"] + 0.1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("  init_from: mllm-scenes\n", "init_from cannot take effect on llm 'linear'; set init_from: null"),
        ("  mask_decoder: sam-scenes\n", "llm 'linear' trains no mask decoder"),
        ("  mask_decoder: {name: scratch, width: 64}\n", "llm 'linear' trains no mask decoder"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, setting: str, message: str) -> None:
    preset = PRESET.replace("{name: tiny, width: 32, layers: 1, heads: 2}", "linear") + setting
    with pytest.raises(StudyError, match=message):
        Study.from_yaml(write_study(tmp_path, STUDY, preset))


def test_more_than_one_device_is_refused(tmp_path) -> None:
    preset = PRESET.replace("{name: tiny, width: 32, layers: 1, heads: 2}", "linear")
    with pytest.raises(StudyError, match="fitted on one device"):
        Study.from_yaml(write_study(tmp_path, STUDY, preset.replace("steps: 10", "steps: 10, devices: 2")))
