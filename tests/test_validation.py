"""Validation during training, against loops."""

import torch
from torch.testing import assert_close

from harness.study.training_config import TrainingConfig
from harness.training.losses import losses
from harness.training.validation import Validation, hits_target
from tests.tiny import FixedBatches, tiny_segmenter


def test_a_location_hits_a_cell_that_the_target_covers_by_half():
    shares = torch.zeros(5, 4, 4)
    shares[0, 1, 0] = 0.5
    shares[1, 1, 0], shares[1, 2, 2] = 0.4, 0.9
    shares[2, 1, 0], shares[2, 2, 2] = 0.2, 0.1
    shares[3, 2, 2], shares[3, 1, 0] = 0.3, 0.2
    logits = torch.zeros(5, 4, 4)
    logits[:, 1, 0] = 1
    assert hits_target(logits, shares).tolist() == [True, False, True, False], "the fifth has no target"


def test_validation_equals_a_loop_over_images_and_leaves_the_mode():
    torch.manual_seed(0)
    segmenter = tiny_segmenter().train()
    batches = FixedBatches(segmenter.llm)
    config = TrainingConfig(steps=1, batch_images=1, location_loss=0.5, precision="float32")
    measured = Validation(segmenter, batches, batches.examples, config)()
    assert segmenter.training
    segmenter.eval()
    total, hits = [], []
    for example in batches.examples:
        batch = batches.make([example], [example.queries], with_mask_inputs=False)
        with torch.no_grad():
            answer = segmenter(batch.features, None, batch.query)
        terms = losses(answer, batch)
        total.append(float(terms.answer + 0.5 * terms.location))
        for logits, shares in zip(answer.location_logits, batch.location_targets, strict=True):
            share = shares.flatten()[int(logits.argmax())]
            hits.append(bool(share >= min(0.5, float(shares.max()))))
    assert_close(measured["validation_loss"], sum(total) / 2, atol=1e-5, rtol=0)
    assert measured["validation_location"] == sum(hits) / len(hits)
