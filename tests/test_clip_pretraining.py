"""The training of clip-scenes: its data and loss, resuming, and that the written model loads like any CLIP."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPVisionModel

from harness.data import scenes
from harness.data.frame import to_tensor
from harness.errors import WeightsError
from harness.model.config import VisionConfig
from harness.model.vision.encoder import load_vision_encoder
from harness.model.weights import known
from harness.model.weights.resolution import resolve
from harness.pretraining import clip_scenes
from harness.pretraining.caption_words import MAX_TOKENS, caption_tokenizer
from harness.pretraining.clip_scenes import (
    MAX_LOGIT_SCALE,
    Options,
    Pairs,
    Sizes,
    Trainer,
    scene_pair,
    train,
    write_model,
)
from harness.pretraining.clip_scores import Pair, card, embed, load_clip, measure, pixels_of, retrieval
from harness.training.loop import Interval, Point, TrainingLoop

TINY = Sizes(image=56, patch=14, width=48, layers=2, heads=2, text_width=32, text_layers=1, text_heads=1, shared=32)
SHORT = Options(steps=2, batch=4)
EASY = Options(steps=40, batch=8)
RGB = {
    "red": (208, 32, 38),
    "orange": (243, 134, 22),
    "yellow": (246, 222, 52),
    "green": (44, 150, 58),
    "cyan": (64, 206, 214),
    "blue": (36, 72, 200),
    "purple": (124, 44, 160),
    "pink": (250, 156, 196),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP, written after two steps."""
    out = tmp_path_factory.mktemp("clip")
    trainer, _ = train(SHORT, out, TINY)
    write_model(trainer.model, trainer.tokenizer, out / "model")
    return out / "model"


def squares(indices: range) -> list[Pair]:
    """Simpler than scenes: one square at a random position on grey, in the eight colours in turn."""
    pairs = []
    for index in indices:
        rng = np.random.default_rng(index)
        image = rng.integers(100, 140, (TINY.image, TINY.image, 3), dtype=np.uint8)
        top, left = rng.integers(0, TINY.image - 24, 2)
        colour = list(RGB)[index % len(RGB)]
        image[top : top + 24, left : left + 24] = RGB[colour]
        pairs.append(Pair(image, f"a plain {colour} square"))
    return pairs


def swapped(indices: range) -> list[Pair]:
    """The same images, with permuted captions."""
    pairs = squares(indices)
    order = np.random.default_rng(indices.start).permutation(len(pairs))
    return [replace(pair, caption=pairs[other].caption) for pair, other in zip(pairs, order, strict=True)]


def run(trainer: Trainer, steps: int) -> list[Point]:
    """The curve of these steps, one point per step."""
    loop = TrainingLoop(trainer, torch.device("cpu"), lambda _: None, Interval(steps=1))
    loop.run(trainer.optimization, range(steps))
    return loop.curve


def last_loss(pairs: Pairs) -> float:
    """The mean loss of the last five of 40 steps, each on new images."""
    curve = run(Trainer(EASY, TINY, pairs), EASY.steps)
    return float(np.mean([point["loss"] for point in curve[-5:]]))


def test_the_loss_falls_with_matching_captions_only() -> None:
    chance = np.log(EASY.batch)
    assert last_loss(squares) < chance / 2
    assert last_loss(swapped) > chance - 0.1


def test_captions_consist_of_known_words_and_are_not_truncated() -> None:
    tokenizer, config = caption_tokenizer(), scenes.Config(train_images=400)
    captions = [scenes.caption(scenes.scene_graph(config, "train", index)) for index in range(400)]
    rows = tokenizer(captions)["input_ids"]
    assert tokenizer.unk_token_id not in {token for ids in rows for token in ids}
    assert tokenizer.convert_ids_to_tokens(tokenizer("two plain red bars, a dotted blue ring")["input_ids"]) == [
        *("[BOS]", "two", "plain", "red", "bars", ",", "a", "dotted", "blue", "ring", "[EOS]")
    ]
    longest = ", ".join(["a striped red star"] * 8) + " and a striped red star"
    assert max(len(ids) for ids in rows) <= len(tokenizer(longest)["input_ids"]) <= MAX_TOKENS


def test_training_pairs_are_train_scenes_of_all_domains_with_their_captions() -> None:
    pairs = [scene_pair("train", 3, index, 224) for index in range(4)]
    for index, (pair, domain) in enumerate(zip(pairs, scenes.DOMAINS, strict=True)):
        config = scenes.Config(seed=3, domains=tuple(scenes.DOMAINS))
        example = scenes.load(config, "train")[index]
        assert example.domain == domain
        assert np.array_equal(pair.image, example.image)
        assert pair.caption == scenes.caption(scenes.scene_graph(config, "train", index))
    assert not np.array_equal(pairs[0].image, scene_pair("test", 3, 0, 224).image)


def test_the_loss_equals_that_of_transformers_on_the_same_batch() -> None:
    """Although images are encoded in parts, and captions without an attention mask."""
    pairs = [scene_pair("train", 0, index, TINY.image) for index in range(10)]
    trainer = Trainer(Options(steps=1, batch=10), TINY, lambda _: pairs)
    text = trainer.tokenizer([pair.caption for pair in pairs], padding=True, return_tensors="pt")
    assert not text["attention_mask"].all()
    with torch.no_grad():
        expected = trainer.model(
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
            pixel_values=pixels_of([pair.image for pair in pairs]),
            return_loss=True,
        )
        images, texts = embed(trainer.model, trainer.tokenizer, pairs)
    assert_close(images, expected.image_embeds)
    assert_close(texts, expected.text_embeds)
    assert trainer.compute_losses(0)[0].item() == pytest.approx(expected.loss.item(), abs=1e-4)


def test_a_step_changes_every_parameter_and_bounds_the_temperature() -> None:
    trainer = Trainer(SHORT, TINY, squares)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    run(trainer, 1)
    unchanged = {name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])}
    # A key bias adds the same value to all scores of a query, so it has no gradient.
    assert {name for name in unchanged if not name.endswith("k_proj.bias")} == set()
    trainer.model.logit_scale.data.fill_(9.0)
    run(trainer, 1)
    assert trainer.model.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = train(SHORT, tmp_path / "uninterrupted", TINY)
    compute_losses, out = Trainer.compute_losses, tmp_path / "interrupted"

    def interrupted(trainer: Trainer, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if step == 1:
            raise KeyboardInterrupt
        return compute_losses(trainer, step)

    monkeypatch.setattr(Trainer, "compute_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(SHORT, out, TINY, steps_between=1)
    monkeypatch.undo()
    resumed, loop = train(SHORT, out, TINY, steps_between=1)
    assert loop.step == 2
    assert_close(resumed.model.state_dict(), expected.model.state_dict(), rtol=0, atol=0)
    lines = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    finished, _ = train(SHORT, out, TINY)
    assert_close(finished.model.state_dict(), expected.model.state_dict(), rtol=0, atol=0)


def test_the_written_folder_loads_strictly_as_a_clip_vision_encoder(folder: Path) -> None:
    encoder = load_vision_encoder(VisionConfig(name=str(folder), frame=TINY.image, layer=1))
    images = [scene_pair("test", 0, index, TINY.image).image for index in range(2)]
    states = CLIPVisionModel.from_pretrained(folder, dtype=torch.float32).eval()(
        pixel_values=pixels_of(images), output_hidden_states=True
    )
    with torch.no_grad():
        assert_close(encoder(to_tensor(images)), states.hidden_states[1][:, 1:])
    assert (encoder.grid, encoder.width, encoder.weights.source) == ((4, 4), TINY.width, "path")
    written = load_file(folder / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float16}
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, written[f"vision_model.{name.removeprefix('vision_model.')}"].float())


def test_a_shipped_folder_is_resolved_by_name_and_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = resolve(str(folder)).sha256
    shipped = known.Shipped(folder, sha256, "encoder", "a tiny one")
    monkeypatch.setitem(known.SHIPPED, "clip-scenes", shipped)
    encoder = load_vision_encoder(VisionConfig(name="clip-scenes", frame=TINY.image))
    assert encoder.weights.as_row() == {
        "name": "clip-scenes",
        "source": "package svp-harness",
        "revision": sha256[:12],
        "sha256": sha256,
    }
    monkeypatch.setitem(known.SHIPPED, "clip-scenes", shipped._replace(sha256="1" * 64))
    with pytest.raises(WeightsError, match=f"has sha256 {sha256}, but 'clip-scenes' has 1111"):
        resolve("clip-scenes")
    monkeypatch.setitem(known.SHIPPED, "clip-scenes", shipped._replace(path=folder / "nowhere"))
    with pytest.raises(WeightsError, match="missing from the package"):
        resolve("clip-scenes")


def test_the_shipped_weights_reach_the_scores_of_their_model_card() -> None:
    shipped = known.SHIPPED["clip-scenes"]
    scores = json.loads((shipped.path / "scores.json").read_text())
    text = (shipped.path / "README.md").read_text()
    assert f"`{resolve('clip-scenes').sha256}`" in text
    assert f"| the scene's own caption | {scores['image_to_text']:.3f} | {scores['text_to_image']:.3f} |" in text
    # Retrieval among 48 captions is easier than among the 200 of the model card.
    measured = measure(*load_clip(shipped.path), [scene_pair("test", 0, index, 224) for index in range(48)])
    for direction in ("image_to_text", "text_to_image"):
        assert scores[direction] < measured[direction] <= 1.0
        assert measured["shuffled"][direction] < 0.15


def test_retrieval_equals_values_computed_by_hand() -> None:
    images = torch.eye(4)
    assert retrieval(images, images) == {"image_to_text": 1.0, "text_to_image": 1.0}
    assert retrieval(images, images.roll(1, dims=0)) == {"image_to_text": 0.0, "text_to_image": 0.0}
    # Two captions are nearer to the first image than to their own; each image is nearest to its own caption.
    texts = torch.tensor([[1.0, 0, 0, 0], [0.8, 0.6, 0, 0], [0.8, 0, 0.6, 0], [0, 0, 0, 1.0]])
    assert retrieval(images, texts) == {"image_to_text": 1.0, "text_to_image": 0.5}


def test_the_model_card_contains_the_scores(folder: Path) -> None:
    test = [scene_pair("test", 0, index, TINY.image) for index in range(10)]
    measured = measure(*load_clip(folder), test)
    assert (measured["scenes"], measured["captions"], measured["chance"]) == (10, 10, 0.1)
    scores = {"steps": 2, "seed": 0, "pairs": 8, "seconds": 60, **measured}
    text = card(folder, scores | {"image_to_text": 0.123})
    assert f"`{resolve(str(folder)).sha256}`" in text
    assert "images 0 to 7 of the four domains" in text
    assert f"| the scene's own caption | 0.123 | {measured['text_to_image']:.3f} |" in text
    assert "| chance | 0.100 | 0.100 |" in text


def test_the_command_writes_a_model_its_scores_and_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_scenes, "Sizes", lambda: TINY)
    arguments = ["--out", str(tmp_path), "--steps", "1", "--test-images", "4"]
    monkeypatch.setattr("sys.argv", ["clip_scenes", *arguments])
    clip_scenes.main()
    scores = json.loads((tmp_path / "model" / "scores.json").read_text())
    assert (scores["steps"], scores["pairs"], scores["scenes"], scores["chance"]) == (1, 64, 4, 0.25)
    assert (tmp_path / "model" / "README.md").read_text().startswith("# clip-scenes")
    load_vision_encoder(VisionConfig(name=str(tmp_path / "model"), frame=TINY.image))
