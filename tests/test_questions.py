"""Questions answered with text: training targets, generation and scores, packed and alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from harness.assembly.batches import BatchMaker
from harness.data.example import Example, Expression, Question, TextQuery
from harness.evaluation.evaluator import Evaluator
from harness.model.segmenter import Segmenter
from harness.results.metrics import score
from harness.study.training_config import TrainingConfig
from harness.training.losses import losses
from harness.training.sampler import of_families
from harness.training.trainer import Trainer
from tests.tiny import FixedBatches, tiny_segmenter

COLOUR = "what of the left star"


def question(answer: str, text: str = COLOUR, scoring: str = "accuracy") -> Question:
    return Question(text, "attribute" if scoring == "accuracy" else "caption", answer, (answer,), scoring)


def asking(example: Example, *questions: Question, expressions: tuple[Expression, ...] = ()) -> Example:
    return replace(example, expressions=expressions, questions=questions)


def examples_of(batches: FixedBatches) -> list[Example]:
    """Two questions with a short and a long answer, which differ between the two images."""
    colours = ("red", "blue")
    return [
        asking(
            example,
            question(colour),
            question(f"the {colour} square", "the square", "cider"),
            expressions=example.expressions,
        )
        for example, colour in zip(batches.examples, colours, strict=True)
    ]


@pytest.fixture
def parts() -> tuple[Segmenter, FixedBatches]:
    torch.manual_seed(0)
    segmenter = tiny_segmenter().eval()
    return segmenter, FixedBatches(segmenter.llm)


def _answer(segmenter: Segmenter, batches: BatchMaker, examples: list[Example], queries: list[list[TextQuery]]) -> Any:
    batch = batches.make(examples, queries)
    return segmenter(batch.features, batch.mask_inputs, batch.query), batch


def test_every_token_of_an_answer_and_its_end_is_a_training_target(parts: tuple[Segmenter, FixedBatches]) -> None:
    segmenter, batches = parts
    examples = examples_of(batches)
    batch = batches.make(examples, [example.queries for example in examples])
    llm = segmenter.llm
    red, blue, the, square = llm.tokenizer.convert_tokens_to_ids(["red", "blue", "the", "square"])
    seg = llm.vocabulary_size
    assert batch.answers.tolist() == [
        *(seg, seg, red, llm.end_id, the, red, square, llm.end_id),
        *(seg, seg, blue, llm.end_id, the, blue, square, llm.end_id),
    ]
    assert len(batch.location_targets) == len(batch.masks.targets) == 4
    assert batch.image.tolist() == [0, 0, 1, 1]


@torch.inference_mode()
def test_answer_logits_equal_those_of_single_sequences() -> None:
    """Compared with one sequence of visual tokens, prompt and answer under the model's own causal mask."""
    torch.manual_seed(0)
    segmenter = tiny_segmenter(visual_attention="causal").eval()
    batches = FixedBatches(segmenter.llm)
    examples = examples_of(batches)
    answer, _ = _answer(segmenter, batches, examples, [example.queries for example in examples])
    llm, rows = segmenter.llm, iter(answer.answer_logits)
    for number, example in enumerate(examples):
        for one in example.queries:
            is_question = isinstance(one, Question)
            words = [*(one.text if is_question else llm.format_prompt(one.text)).split()]
            answer_words = one.answer.split() if is_question else []
            ids = torch.tensor([llm.tokenizer.convert_tokens_to_ids([*words, *answer_words])])
            embeds = torch.cat([answer.tokens.embeds[number : number + 1], llm.embed(ids)], dim=1)
            states = llm.model.get_decoder()(inputs_embeds=embeds).last_hidden_state[0]
            for state in states[len(states) - len(answer_words) - 1 :]:
                assert_close(next(rows), llm.answer_logits(state[None])[0], atol=1e-5, rtol=0)
    assert next(rows, None) is None


@torch.inference_mode()
def test_masks_do_not_depend_on_questions(parts: tuple[Segmenter, FixedBatches]) -> None:
    segmenter, batches = parts
    examples = examples_of(batches)
    both, _ = _answer(segmenter, batches, examples, [example.queries[::-1] for example in examples])
    expressions_only, _ = _answer(segmenter, batches, examples, [example.expressions[::-1] for example in examples])
    assert_close(both.mask_logits, expressions_only.mask_logits, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("seg_state", ["predict", "own"])
def test_packed_greedy_decoding_equals_that_of_single_questions(seg_state: str) -> None:
    torch.manual_seed(2)
    segmenter = tiny_segmenter(seg_state=seg_state).eval()
    batches = FixedBatches(segmenter.llm)
    examples = examples_of(batches)
    queries = [example.queries for example in examples]
    features = batches.make(examples, queries).features
    tokens = segmenter.projector(features)
    packed = segmenter.generate(tokens, batches.query(queries).questions(), max_tokens=5)
    alone = []
    for number, example in enumerate(examples):
        one_image = replace(tokens, embeds=tokens.embeds[number : number + 1], mask=tokens.mask[number : number + 1])
        for one in example.questions:
            generated: list[int] = []
            while len(generated) < 5 and segmenter.llm.end_id not in generated:
                known = replace(one, answer=segmenter.llm.tokenizer.decode(generated))
                state, _ = segmenter.run_llm(one_image, batches.query([[known]], with_answers=True))
                generated.append(int(segmenter.llm.answer_logits(state[-1:]).argmax()))
            alone.append(generated)
    assert len({word for generated in alone for word in generated}) > 2, (
        "the test requires an LLM that generates different tokens"
    )
    for row, generated in zip(packed.tolist(), alone, strict=True):
        assert row[: len(generated)] == generated
        assert set(row[len(generated) :]) <= {segmenter.llm.end_id}


def test_a_loss_without_expressions_is_that_of_the_answers(parts: tuple[Segmenter, FixedBatches]) -> None:
    segmenter, batches = parts
    examples = [asking(example, question("red")) for example in batches.examples]
    answer, batch = _answer(segmenter, batches, examples, [example.queries for example in examples])
    found = losses(answer, batch)
    assert_close(found.total(1.0), F.cross_entropy(answer.answer_logits, batch.answers))
    found.total(1.0).backward()
    assert segmenter.llm.model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def trained() -> tuple[Evaluator, list[Example]]:
    """A segmenter that is overfitted to masks, answers and captions of two images."""
    torch.manual_seed(0)
    segmenter = tiny_segmenter()
    batches = FixedBatches(segmenter.llm)
    examples = examples_of(batches)
    config = TrainingConfig(steps=150, batch_images=2, expressions_per_image=4, learning_rate=3e-3, warmup_steps=5)
    Trainer(segmenter, batches, config, torch.Generator().manual_seed(0), lambda *_: None).run(examples)
    return Evaluator(segmenter, batches, 2, "float32"), examples


def test_trained_answers_are_generated_and_depend_on_the_image(trained: tuple[Evaluator, list[Example]]) -> None:
    evaluator, examples = trained
    samples, _ = evaluator.score(examples)
    questions = samples[samples["scoring"].notna()]
    assert questions["generated_text"].tolist() == ["red", "the red square", "blue", "the blue square"]
    assert questions["expression_id"].tolist() == [2, 3, 2, 3]
    assert questions["iou"].isna().all()
    found = score(samples)
    assert found["accuracy"] == 1.0
    assert found["giou"] > 0.8
    assert found["giou"] == samples["iou"].mean()
    shuffled = evaluator.controls(examples)
    assert shuffled["accuracy_shuffled"] == 0.0
    assert shuffled["cider_shuffled"] < found["cider"]
    assert set(shuffled) == {"giou_shuffled", "giou_swapped_tokens", "accuracy_shuffled", "cider_shuffled"}


def test_questions_alone_have_no_mask_scores(trained: tuple[Evaluator, list[Example]]) -> None:
    evaluator, examples = trained
    samples, tokens = evaluator.score([replace(example, expressions=()) for example in examples])
    assert set(score(samples)) == {"accuracy", "cider"}
    assert tokens == [4, 4]
    assert set(evaluator.controls([replace(example, expressions=()) for example in examples])) == {
        "accuracy_shuffled",
        "cider_shuffled",
    }


def test_a_curriculum_keeps_questions_of_its_families(parts: tuple[Segmenter, FixedBatches]) -> None:
    _, batches = parts
    kept = of_families(examples_of(batches), ["caption"])
    assert [[one.family for one in example.queries] for example in kept] == [["caption"], ["caption"]]
