"""A frozen SAM: strict loading, and embeddings that do not depend on the padding."""

import dataclasses
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT
from torch.testing import assert_close

from harness.data.frame import Frame, to_tensor
from harness.errors import WeightsError
from harness.model.mask_decoder.fused_attention import fuse_attention
from harness.model.mask_decoder.sam import BUILDERS, LoadedSam, build_sam_scenes, load_sam
from harness.model.weights.checksums import sha256_of
from harness.model.weights.known import CHECKPOINTS, SHIPPED
from harness.model.weights.resolution import WeightsRecord, resolve
from harness.pretraining.sam_scenes import scene
from harness.pretraining.sam_scores import means, measure
from harness.system.cache_folder import VARIABLE

WEIGHTS = SHIPPED["sam-scenes"][0]
FOLDER = WEIGHTS.parent


@pytest.fixture(scope="module")
def random_sam() -> LoadedSam:
    torch.manual_seed(0)
    return LoadedSam(build_sam_scenes(), WeightsRecord("random", "random", "seed 0", ""))


@pytest.fixture
def checkpoint(tmp_path: Path, random_sam: LoadedSam, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    path = tmp_path / "model.safetensors"
    save_file(random_sam.sam.state_dict(), path)
    return path


def test_a_checkpoint_round_trips(checkpoint: Path, random_sam: LoadedSam) -> None:
    loaded = load_sam(str(checkpoint))
    assert (loaded.frame, loaded.grid, loaded.record.source) == (224, (28, 28), "path")
    assert loaded.record.sha256 == sha256_of(checkpoint)
    frames = torch.rand(2, 3, 224, 224)
    assert_close(loaded.embed(frames), random_sam.embed(frames))
    assert loaded.embed(frames).shape == (2, loaded.width, 28, 28)


def test_checkpoints_in_metas_format_load(checkpoint: Path, random_sam: LoadedSam) -> None:
    path = checkpoint.with_name("model.pth")
    torch.save(random_sam.sam.state_dict(), path)
    frames = torch.rand(1, 3, 224, 224)
    assert_close(load_sam(str(path)).embed(frames), random_sam.embed(frames))


def test_a_loaded_sam_is_frozen(random_sam: LoadedSam) -> None:
    assert not any(parameter.requires_grad for parameter in random_sam.parameters())
    assert not any(module.training for module in random_sam.train().modules())


def test_an_image_smaller_than_its_frame_is_embedded_as_sam_does(random_sam: LoadedSam) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8)
    frame = Frame.of(image.shape[:2], random_sam.frame)
    framed = frame.place_image(image)
    valid_mask = torch.from_numpy(frame.place_mask(np.ones(image.shape[:2], bool)))[None]
    ours = random_sam.embed(to_tensor([framed]), valid_mask)
    pixels = to_tensor([framed])[:, :, : frame.height, : frame.width]
    theirs = random_sam.sam.image_encoder(random_sam.sam.preprocess(255 * pixels))
    assert_close(ours, theirs)
    framed[frame.height :] = 77
    assert_close(random_sam.embed(to_tensor([framed]), valid_mask), ours, rtol=0, atol=0)
    assert not torch.allclose(random_sam.embed(to_tensor([framed])), ours)


def test_missing_unexpected_and_reshaped_weights_are_refused(checkpoint: Path, random_sam: LoadedSam) -> None:
    state = random_sam.sam.state_dict()
    key = "mask_decoder.iou_token.weight"
    save_file({name: value for name, value in state.items() if name != key}, checkpoint)
    with pytest.raises(WeightsError, match=f"missing: {key}"):
        load_sam(str(checkpoint))
    save_file({**state, "extra": torch.zeros(1)}, checkpoint)
    with pytest.raises(WeightsError, match="unexpected: extra"):
        load_sam(str(checkpoint))
    save_file({**state, key: torch.zeros(1, 3)}, checkpoint)
    with pytest.raises(WeightsError, match=f"of another shape: {key}"):
        load_sam(str(checkpoint))


@pytest.mark.parametrize("name", ["text.safetensors", "text.pth", "pickle.pth", "other.safetensors", "number.pth"])
def test_a_file_that_is_not_a_sam_is_refused_in_one_sentence(name: str, checkpoint: Path) -> None:
    path = checkpoint.with_name(name)
    path.write_bytes(pickle.dumps(Frame, protocol=2) if name == "pickle.pth" else b"no weights at all")
    if name == "other.safetensors":
        save_file({"weight": torch.zeros(2)}, path)
    if name == "number.pth":
        torch.save(7, path)
    with pytest.raises(WeightsError, match=f"the weights '{path}'") as caught:
        load_sam(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="is a folder; use the path of a SAM's checkpoint file"):
        load_sam(str(tmp_path))


def test_a_misspelt_sam_is_corrected() -> None:
    with pytest.raises(WeightsError, match="did you mean sam-scenes"):
        load_sam("sam-scene")


def test_an_unknown_encoder_width_is_refused(checkpoint: Path) -> None:
    save_file({"image_encoder.patch_embed.proj.weight": torch.zeros(100, 3, 16, 16)}, checkpoint)
    with pytest.raises(
        WeightsError, match="an image encoder of width 100; supported SAMs have width 128, 768, 1024, 1280"
    ):
        load_sam(str(checkpoint))


@pytest.mark.parametrize("width", sorted(BUILDERS))
def test_an_architecture_is_identified_by_its_width(width: int) -> None:
    with torch.device("meta"):
        assert len(BUILDERS[width]().image_encoder.patch_embed.proj.weight) == width


def test_a_checkpoint_copied_into_the_cache_is_found_by_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = checkpoint.parent / "cache" / "weights" / "sam-vit-b" / "sam_vit_b_01ec64.pth"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"half a download")
    with pytest.raises(WeightsError, match=r"but 'sam-vit-b' has ec2df627.*delete the file and run again"):
        resolve("sam-vit-b")
    small = dataclasses.replace(CHECKPOINTS["sam-vit-b"], sha256=sha256_of(own))
    monkeypatch.setitem(CHECKPOINTS, "sam-vit-b", small)
    record = resolve("sam-vit-b")
    assert (record.source, record.folder, record.file) == ("cache", own.parent, own.name)


@pytest.mark.usefixtures("checkpoint")
def test_a_checkpoint_that_is_not_found_lists_the_attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as caught:
        load_sam("sam-vit-h")
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  1. cache: no ")
    assert lines[2] == "  2. local hub cache: no copy"
    assert lines[3].startswith("  3. hub: ")
    assert "copy the published sam_vit_h_4b8939.pth to the first path" in lines[4]


def test_the_shipped_weights_are_those_of_the_model_card() -> None:
    record = load_sam("sam-scenes").record
    card = (FOLDER / "README.md").read_text()
    assert f"sha256 `{record.sha256}`" in card
    assert (record.source, record.sha256) == ("package svp-harness", hashlib.sha256(WEIGHTS.read_bytes()).hexdigest())
    assert WEIGHTS.stat().st_size < 12 * 2**20


@pytest.mark.slow
def test_the_shipped_weights_segment_as_well_as_the_model_card_says() -> None:
    rows = measure(load_sam("sam-scenes"), [scene("test", 0, index) for index in range(24)])
    recorded = json.loads((FOLDER / "scores.json").read_text())
    for kind, value in means(rows).items():
        # 24 of the card's 200 images, some 130 objects: three standard errors of their mean.
        assert value == pytest.approx(recorded[kind], abs=3 * np.std([row[kind] for row in rows]) / len(rows) ** 0.5)


@pytest.mark.parametrize("use_rel_pos", [True, False])
@torch.no_grad()
def test_fused_attention_equals_upstream(use_rel_pos: bool) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=48,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        out_chans=8,
        use_rel_pos=use_rel_pos,
        window_size=4,
        global_attn_indexes=(1,),
    )
    encoder.double().eval()
    for parameter in encoder.parameters():
        parameter.normal_(std=0.5)
    frames = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    expected, names = encoder(frames), encoder.state_dict().keys()
    fuse_attention(encoder)
    assert_close(encoder(frames), expected)
    assert encoder.state_dict().keys() == names
