"""Packed expressions of an image share its visual tokens and do not affect one another."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from harness.model.llm.packing import pack
from harness.model.segmenter import Query
from projectors import VisualTokens
from tests.tiny import ask, tiny_features, tiny_segmenter

TEXTS = [["the red square", "the blue star left of the circle", "the green circle"], ["the star", "the red circle"]]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("seg_state", ["predict", "own"])
@pytest.mark.parametrize("visual_attention", ["causal", "bidirectional"])
def test_packed_scores_equal_one_expression_at_a_time(generator, visual_attention, seg_state):
    torch.manual_seed(0)
    segmenter = tiny_segmenter(visual_attention=visual_attention, seg_state=seg_state).eval()
    features, frames = tiny_features(2, generator)
    with torch.inference_mode():
        packed = segmenter(features, frames, ask(segmenter.llm, TEXTS))
        row = 0
        for image, texts in enumerate(TEXTS):
            one = slice(image, image + 1)
            alone_features = type(features)(features.patches[one], features.patch_mask[one])
            for text in texts:
                alone = segmenter(alone_features, frames[one], ask(segmenter.llm, [[text]]))
                assert_close(packed.mask_logits[row], alone.mask_logits[0], atol=1e-4, rtol=0)
                assert_close(packed.answer_logits[row], alone.answer_logits[0], atol=1e-4, rtol=0)
                row += 1
    assert row == len(packed.mask_logits)


def test_an_expression_does_not_depend_on_its_neighbour(generator):
    torch.manual_seed(0)
    segmenter = tiny_segmenter().eval()
    features, frames = tiny_features(1, generator)
    with torch.inference_mode():
        first = segmenter(features, frames, ask(segmenter.llm, [["the red square", "the star"]]))
        second = segmenter(features, frames, ask(segmenter.llm, [["the red square", "the circle"]]))
    assert_close(first.mask_logits[0], second.mask_logits[0], atol=1e-5, rtol=0)
    assert (first.mask_logits[1] - second.mask_logits[1]).abs().max() > 1e-4


def test_the_image_matters_to_an_expression(generator):
    torch.manual_seed(0)
    segmenter = tiny_segmenter().eval()
    features, _ = tiny_features(2, generator)
    query = ask(segmenter.llm, [["the star"], ["the star"]])
    with torch.inference_mode():
        states, _ = segmenter.run_llm(segmenter.projector(features), query)
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_padding_changes_nothing(generator):
    torch.manual_seed(0)
    segmenter = tiny_segmenter().eval()
    features, _ = tiny_features(1, generator)
    query = ask(segmenter.llm, [["the star", "the red circle"]])
    tokens = segmenter.projector(features)
    num_valid = tokens.embeds.shape[1]
    padded = VisualTokens(
        torch.cat([tokens.embeds, torch.full((1, 3, tokens.embeds.shape[2]), 7.0)], dim=1),
        torch.arange(num_valid + 3).unsqueeze(0) < num_valid,
    )
    padded_query = Query(
        F.pad(query.ids, (0, 2, 0, 1)),
        F.pad(query.mask, (0, 2, 0, 1)),
        F.pad(query.answer_lengths, (0, 1)),
        F.pad(query.is_expression, (0, 1)),
    )
    with torch.inference_mode():
        assert_close(segmenter.run_llm(padded, padded_query), segmenter.run_llm(tokens, query), atol=1e-5, rtol=0)


def test_layout_by_hand():
    """Image 0: one of two visual tokens is padding, expressions of 2, 0 and 1 tokens. Image 1: one expression of 1."""
    visual = VisualTokens(torch.zeros(2, 2, 3), torch.tensor([[True, False], [True, True]]))
    mask = torch.tensor([[[1, 1], [0, 0], [1, 0]], [[1, 0], [0, 0], [0, 0]]], dtype=torch.bool)
    text = torch.arange(12.0).view(2, 3, 2, 1).expand(2, 3, 2, 3)
    packed = pack(visual, text, mask, bidirectional=True)
    assert packed.embeds[0, :, 0].tolist() == [0, 0, 0, 1, 4]
    assert packed.embeds[1, :3, 0].tolist() == [0, 0, 6]
    assert packed.positions[0].tolist() == [0, 0, 1, 2, 1]
    assert packed.positions[1, :3].tolist() == [0, 1, 2]
    assert packed.first[0, [0, 2]].tolist() == [2, 4]
    assert packed.first[1, 0] == 2
    first = [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]
    second = [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert packed.attention.int().tolist() == [first, second]
