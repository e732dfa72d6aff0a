"""Scoring: counts by hand, the effect of [SEG], and single images compared with batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from benchmarks.scoring import UpstreamMaskDecoder, rows_by_loop, score_by_loop
from harness.assembly.assembly import load_examples, prepare
from harness.assembly.checkpoint import load
from harness.data.example import Expression, encode
from harness.evaluation.evaluator import Evaluator, Prediction, sample_rows
from harness.model.weights.known import SHIPPED
from harness.study.training_config import TrainingConfig
from harness.training.trainer import Trainer
from tests.tiny import FixedBatches, tiny_segmenter, two_objects


@pytest.fixture(scope="module")
def trained() -> FixedBatches:
    """Batches whose segmenter overfits two images."""
    torch.manual_seed(0)
    segmenter = tiny_segmenter()
    batches = FixedBatches(segmenter.llm)
    batches.segmenter = segmenter
    config = TrainingConfig(steps=150, batch_images=2, expressions_per_image=2, learning_rate=3e-3, warmup_steps=5)
    Trainer(segmenter, batches, config, torch.Generator().manual_seed(0), lambda *_: None).run(batches.examples)
    return batches


def _evaluator(batches: FixedBatches, batch_images: int = 2) -> Evaluator:
    return Evaluator(batches.segmenter, batches, batch_images, "float32")


def test_an_overfitted_model_scores_high_and_shuffled_expressions_do_not(trained):
    samples, tokens = _evaluator(trained).score(trained.examples)
    assert samples.iou.mean() > 0.8
    assert samples.predicted_seg.all()
    assert tokens == [4, 4]
    swapped = [replace(e, expressions=e.expressions[::-1]) for e in trained.examples]
    mixed = [trained.examples[0], swapped[1]]
    assert _evaluator(trained).controls(mixed)["giou_shuffled"] < 0.2


def test_swapped_tokens_change_the_input_of_the_llm_and_not_of_the_mask_decoder(trained, monkeypatch):
    segmenter, own = trained.segmenter, trained.visual.patches
    project, segment, inputs = segmenter.projector.forward, segmenter.segment, []
    monkeypatch.setattr(
        segmenter.projector, "forward", lambda features: project(inputs.append(features.patches) or features)
    )
    monkeypatch.setattr(segmenter, "segment", lambda patches, *rest: segment(inputs.append(patches) or patches, *rest))
    found = _evaluator(trained).controls(trained.examples)
    assert set(found) == {"giou_shuffled", "giou_swapped_tokens"}
    shuffled, other_tokens = inputs[:2], inputs[2:]
    assert all(torch.equal(patches, own) for patches in shuffled)
    assert torch.equal(other_tokens[0], own.flip(0))
    assert torch.equal(other_tokens[1], own)


def test_rows_have_the_pixel_counts_of_their_masks(trained):
    samples, _ = _evaluator(trained).score(trained.examples)
    assert list(samples.expression_id) == [0, 1, 0, 1]
    for row in samples.itertuples():
        size = [row.height, row.width]
        prediction = coco_mask.decode({"size": size, "counts": row.prediction_rle.encode()}).astype(bool)
        target = coco_mask.decode({"size": size, "counts": row.target_rle.encode()}).astype(bool)
        assert row.intersection == (prediction & target).sum()
        assert row.union == (prediction | target).sum()
        assert (row.predicted_area, row.target_area) == (prediction.sum(), target.sum())
        assert row.iou == pytest.approx(row.intersection / row.union)


def test_a_batch_scores_like_its_images_alone(trained):
    together, _ = _evaluator(trained, batch_images=2).score(trained.examples)
    alone, _ = _evaluator(trained, batch_images=1).score(trained.examples)
    assert np.abs(together.iou - alone.iou).max() < 1e-4


def test_packed_expressions_score_like_single_ones(trained):
    """Packed evaluation compared with one expression at a time."""
    packed, _ = _evaluator(trained).score(trained.examples)
    single = [replace(e, expressions=(x,)) for e in trained.examples for x in e.expressions]
    alone, _ = _evaluator(trained).score(single)
    assert np.abs(packed.iou.to_numpy() - alone.iou.to_numpy()).max() < 1e-4


def test_without_seg_the_mask_is_empty_unless_teacher_forced():
    """A rejected target scores 0 but keeps its teacher-forced score; a rejected absent expression scores 1."""
    example = two_objects(0)
    example = replace(example, expressions=(example.expressions[0], Expression("the star", "absent", ())))
    forced = np.stack([example.mask(example.expressions[0])] * 2)
    output, rejected = np.array([True, True]), np.array([False, False])
    found, hallucinated = sample_rows(example, Prediction(forced, output, tokens=4))
    assert (found["iou"], found["iou_teacher_forced"]) == (1.0, 1.0)
    assert (hallucinated["iou"], hallucinated["intersection"], hallucinated["union"]) == (0.0, 0, forced[1].sum())
    missed, right = sample_rows(example, Prediction(forced, rejected, tokens=4))
    assert (missed["iou"], missed["iou_teacher_forced"], missed["predicted_area"]) == (0.0, 1.0, 0)
    assert (right["iou"], right["iou_teacher_forced"]) == (1.0, 0.0)


def test_rows_equal_a_loop_over_masks():
    """Random masks, an expression without [SEG], one without a target, and ignored pixels."""
    generator = np.random.default_rng(0)
    example = two_objects(1)
    ignored = encode(generator.random(example.size) < 0.2)
    expressions = (*example.expressions, Expression("the star", "absent", ()), example.expressions[0])
    example = replace(example, expressions=expressions, ignored=ignored)
    masks = generator.random((4, *example.size)) < 0.5
    prediction = Prediction(masks, np.array([True, False, True, True]), tokens=4)
    for row, expected in zip(sample_rows(example, prediction), rows_by_loop(example, prediction), strict=True):
        assert {name: row[name] for name in expected} == expected


@pytest.mark.slow
def test_shipped_weights_score_as_with_the_upstream_decoder(tmp_path, monkeypatch):
    """Two images, in float32; the decoders sum in another order, so single pixels at an edge may differ."""
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    trained = load(SHIPPED["mllm-scenes"].path, torch.device("cpu"), "float32")
    testing = load_examples(trained.spec, "test")
    examples, segmenter = [testing[0], testing[1]], trained.assembly.segmenter
    prepare(trained.assembly.batches, examples, lambda _: None)
    evaluator = Evaluator(segmenter, trained.assembly.batches, 2, "float32")
    found, _ = evaluator.score(examples)
    decoder = segmenter.mask_decoder
    segmenter.mask_decoder = UpstreamMaskDecoder(decoder.prompt_encoder, decoder.sam_decoder)
    expected = score_by_loop(evaluator, examples)
    assert (found.iou - expected.iou).abs().max() < 1e-3
    assert (found.intersection - expected.intersection).abs().max() <= 2
    assert (found.predicted_seg == expected.predicted_seg).all()
