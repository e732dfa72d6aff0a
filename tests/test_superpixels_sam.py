"""The SAM source: named granularities, one run of SAM for all of them, and its cache."""

from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from pydantic import ValidationError
from safetensors.torch import save_file
from sams import random_sam

from harness import superpixels
from harness.cache import superpixel_labels
from harness.cache.superpixel_labels import SuperpixelCache, segment
from harness.data.example import Example
from harness.data.frame import Frame
from harness.data.scenes import Config as ScenesConfig
from harness.data.scenes import load
from harness.model.mask_decoder.decoder import MaskDecoder
from harness.model.mask_decoder.sam import build_sam_scenes
from harness.superpixels.granularity import NAMES, settings
from harness.superpixels.methods.sam import FEATURES, Config, principal_components

EXAMPLE = load(ScenesConfig(test_images=1), "test")[0]


def checkpoint(folder: Path, seed: int) -> str:
    """A file of the small SAM's architecture with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_file(build_sam_scenes().state_dict(), folder / f"sam-{seed}.safetensors")
    return str(folder / f"sam-{seed}.safetensors")


@pytest.mark.parametrize("model", ["sam-scenes", "sam-vit-b", "mobile-sam"])
@pytest.mark.parametrize("granularity", NAMES)
def test_a_granularity_sets_defaults_that_can_be_overridden(granularity, model):
    config = Config(granularity=granularity, model=model)
    assert settings(model, granularity).items() <= config.model_dump().items()
    assert Config(**config.model_dump()) == config
    replaced = Config(granularity=granularity, model=model, rock_sand_water=0.5, count=7)
    assert replaced == config.model_copy(update={"rock_sand_water": 0.5, "count": 7})
    assert replaced.max_superpixels == 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"points_per_side": 20}, "points_per_side=20 exceeds pool_points_per_side=16"),
        ({"pred_iou_threshold": 0.3, "model": "sam-vit-h"}, "candidates of sam-vit-h have at least 0.7"),
        ({"stability_threshold": 0.1}, "stability_threshold=0.1, but candidates of sam-scenes have"),
        ({"detail": 0.1}, "cannot take effect with granularity 'default'"),
        ({"granularity": "finer"}, "'coarse', 'default', 'fine', 'finest' or 'adaptive'"),
    ],
)
def test_invalid_settings_are_refused(overrides, message):
    with pytest.raises(ValidationError, match=message):
        Config(**overrides)


def test_sam_runs_once_for_all_granularities(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    sam = random_sam()
    monkeypatch.setattr("harness.cache.superpixel_labels.frozen_sam", lambda _: sam)
    segment("sam", Config(), EXAMPLE)
    monkeypatch.setattr(MaskDecoder, "at_points", None)
    monkeypatch.setattr(type(sam), "embed", None)
    for overrides in (*({"granularity": name} for name in NAMES), {"points_per_side": 3, "min_area": 0.1}):
        labels = segment("sam", Config(**overrides), EXAMPLE)
        assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))


def test_adaptive_splits_the_superpixels_of_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr("harness.cache.superpixel_labels.frozen_sam", lambda _: random_sam())
    loose = {"pred_iou_threshold": 0.6, "stability_threshold": 0.9}
    plain = segment("sam", Config(count=10, **loose), EXAMPLE)
    split = segment("sam", Config(granularity="adaptive", count=30, detail=0.0, **loose), EXAMPLE)
    assert 1 < plain.max() + 1 <= 10
    assert split.max() + 1 == 30
    for label in range(30):
        assert len(np.unique(plain[split == label])) == 1
    careful = segment("sam", Config(granularity="adaptive", count=30, detail=0.05, **loose), EXAMPLE)
    assert plain.max() <= careful.max() < split.max()


def test_other_weights_have_other_cache_files(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    caches = [
        SuperpixelCache("sam", Config(model=checkpoint(tmp_path, seed), pool_points_per_side=2, points_per_side=2), 56)
        for seed in (0, 1)
    ]
    assert caches[0].key != caches[1].key


def test_superpixels_of_the_original_image_are_resized_to_the_frame(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    config = Config(model=checkpoint(tmp_path, 0), pool_points_per_side=2, points_per_side=2)
    wide = Example("wide", EXAMPLE.image[:112], (), ())
    cache = SuperpixelCache("sam", config, 56)
    cache.ensure([wide], lambda *_: None)
    labels = cache.load([wide])[0]
    assert labels.shape == (56, 56)
    assert (labels[28:] == -1).all()
    assert labels[:28].unique().tolist() == list(range(int(labels.max()) + 1))


def test_images_whose_candidates_another_worker_computes_come_last(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    config = Config(model=checkpoint(tmp_path, 0), pool_points_per_side=2, points_per_side=2)
    examples = [Example(str(number), EXAMPLE.image[number:], (), ()) for number in range(3)]
    cache = SuperpixelCache("sam", config, 56)
    paths = [cache.pool._path(example) for example in examples]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(paths[0].with_name(f".{paths[0].name}.lock"))
    lock.acquire()
    existing = []

    def on_wait():
        existing.append([path.exists() for path in paths])
        lock.release()

    cache.ensure(examples, lambda *_: None, on_wait)
    assert existing == [[False, True, True]]
    assert cache.load(examples).shape == (3, 56, 56)


def test_principal_components_keep_the_variance_between_cells():
    embedding = torch.randn(3, generator=torch.Generator().manual_seed(0))[:, None, None] * torch.arange(16.0).view(
        4, 4
    )
    embedding = torch.cat([embedding, torch.zeros(29, 4, 4)])
    components = principal_components(embedding, Frame.of((32, 32), 32))
    assert components.shape == (FEATURES, 4, 4)
    distances = torch.cdist(components.flatten(1).T, components.flatten(1).T)
    expected = torch.cdist(embedding.flatten(1).T, embedding.flatten(1).T)
    # Small distances are differences of large squares.
    torch.testing.assert_close(distances, expected, atol=1e-3, rtol=1e-4)


def test_other_code_has_other_cache_files(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_HARNESS_CACHE", str(tmp_path))
    before = SuperpixelCache("slic", superpixels.get("slic").Config(), 56).key
    assert SuperpixelCache("slic", superpixels.get("slic").Config(), 56).key == before
    modules_hashed = []
    monkeypatch.setattr(superpixel_labels, "fingerprint", lambda *modules: modules_hashed.extend(modules) or "edited")
    assert SuperpixelCache("slic", superpixels.get("slic").Config(), 56).key != before
    assert "harness.superpixels.methods.slic" in modules_hashed
