"""Validation during training, against loops."""

import torch
from torch.testing import assert_close

from harness.study.training_config import TrainingConfig
from harness.training.losses import losses
from harness.training.validation import Validation, hits_target
from tests.tiny import FixedBatches, tiny_segmenter


def test_a_location_hits_where_the_centre_of_the_likeliest_cell_is_on_the_target():
    targets = torch.zeros(4, 12, 12)
    targets[0, 3:6, 0:3] = 1
    targets[1, 4, 1] = 1
    targets[3, :, :6] = 1
    logits = torch.zeros(4, 4, 4)
    logits[0, 1, 0] = logits[1, 1, 0] = logits[2, 1, 0] = 1
    logits[3, 2, 2] = 1
    assert hits_target(logits, targets).tolist() == [True, True, False], "the third has no target"
    targets[1] = 0
    targets[1, 3, 0] = 1
    assert hits_target(logits, targets).tolist() == [True, False, False], "a target beside the centre of the cell"


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
        for logits, target in zip(answer.location_logits, batch.targets, strict=True):
            row, column = divmod(int(logits.argmax()), logits.shape[1])
            scale = target.shape[0] / logits.shape[0]
            hits.append(bool(target[int((row + 0.5) * scale), int((column + 0.5) * scale)]))
    assert_close(measured["validation_loss"], sum(total) / 2, atol=1e-5, rtol=0)
    assert measured["validation_location"] == sum(hits) / len(hits)
