"""Every family of vision encoders: strict loading from its official format, and patches in the frame's grid."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModel, InternVLVisionModel
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.siglip2.image_processing_siglip2 import Siglip2ImageProcessor

from harness.errors import WeightsError
from harness.model.config import VisionConfig
from harness.model.vision.encoder import VisionEncoder, load_vision_encoder
from harness.model.vision.families import CLIP, HALF, IMAGENET
from tests.checkpoints import ENCODERS, NATIVE, PATCH, WHOLE, WIDTH, write_encoder

FRAME = 56
every_family = pytest.mark.parametrize("kind", ENCODERS)
every_native = pytest.mark.parametrize("kind", NATIVE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small random checkpoint of each family, as `save_pretrained` writes it."""
    found = {kind: tmp_path_factory.mktemp("families") / kind for kind in ENCODERS}
    for kind, folder in found.items():
        write_encoder(kind, folder)
    return found


def encoder_of(folder: Path, **settings: Any) -> VisionEncoder:
    return load_vision_encoder(VisionConfig(name=str(folder), frame=FRAME, **settings))


def frames(count: int = 2) -> Tensor:
    """Random frames with uint8 values scaled to 0..1."""
    pixels = torch.randint(0, 256, (count, 3, FRAME, FRAME), generator=torch.Generator().manual_seed(0))
    return pixels / 255


def normalised(encoder: VisionEncoder, pixels: Tensor) -> Tensor:
    return (pixels - encoder.mean) / encoder.std


@every_family
@torch.no_grad()
def test_every_family_returns_the_patches_of_the_grid(folders: dict[str, Path], kind: str) -> None:
    encoder = encoder_of(folders[kind])
    assert (encoder.width, encoder.grid, encoder.layer) == (WIDTH, (FRAME // PATCH, FRAME // PATCH), 2)
    found = encoder.encode(frames(), has_attention=True, layers=(1, 2))
    assert found.patches.shape == (2, 16, WIDTH)
    assert found.keys is not None
    assert found.keys.shape == (2, 2, 16, WIDTH // 2)
    assert (found.cls_query is not None) == (found.cls_key is not None) == encoder.has_cls
    assert found.layers is not None
    assert found.layers.shape == (2, 2, 16, WIDTH)
    assert found.patches.std() > 0.01


@pytest.mark.parametrize("kind", WHOLE)
@torch.no_grad()
def test_patches_are_those_of_the_model_without_cls_and_registers(folders: dict[str, Path], kind: str) -> None:
    encoder = encoder_of(folders[kind])
    model: Any = type(encoder.model).from_pretrained(folders[kind]).eval()
    settings = {} if kind.startswith("dino") else {"interpolate_pos_encoding": True}
    states = model(pixel_values=normalised(encoder, frames()), **settings).last_hidden_state
    torch.testing.assert_close(encoder(frames()), states[:, -16:])


@torch.no_grad()
def test_an_earlier_block_of_clip_has_no_norm_after_it_as_in_llava(folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["clip"], layer=1)
    model: Any = CLIPVisionModel.from_pretrained(folders["clip"]).eval()
    pixels = normalised(encoder, frames())
    states = model(pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    torch.testing.assert_close(encoder(frames()), states[1][:, 1:])


@torch.no_grad()
def test_tiles_are_encoded_separately_and_placed_at_their_position(folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["internvl_vision"])
    model: Any = InternVLVisionModel.from_pretrained(folders["internvl_vision"]).eval()
    padded = frames(1)
    found = encoder(padded)[0].unflatten(0, encoder.grid)
    for row in range(2):
        for column in range(2):
            tile = normalised(encoder, padded[:, :, 28 * row : 28 * row + 28, 28 * column : 28 * column + 28])
            expected = model(pixel_values=tile).last_hidden_state[0, 1:].unflatten(0, (2, 2))
            torch.testing.assert_close(found[2 * row : 2 * row + 2, 2 * column : 2 * column + 2], expected)


@torch.no_grad()
def test_tiles_of_padding_only_are_skipped(folders: dict[str, Path]) -> None:
    """Images of 28 x 56, 56 x 30 and 20 x 20 in frames of 2 x 2 tiles cover seven tiles."""
    encoder, padded = encoder_of(folders["internvl_vision"]), frames(3)
    inputs: list[Tensor] = []
    encoder.model.register_forward_pre_hook(
        lambda _module, _args, settings: inputs.append(settings["pixel_values"]), with_kwargs=True
    )
    found = encoder.encode(padded, [(28, FRAME), (FRAME, 30), (20, 20)], has_attention=True, layers=(1,))
    assert len(inputs[0]) == 2 + 4 + 1
    whole = encoder.encode(padded, has_attention=True, layers=(1,))
    is_used = torch.zeros(3, *encoder.grid, dtype=torch.bool)
    is_used[0, :2], is_used[1], is_used[2, :2, :2] = True, True, True
    is_used = is_used.flatten(1)
    assert found.keys is not None
    assert whole.keys is not None
    assert found.layers is not None
    assert whole.layers is not None
    for one, other in (
        (found.patches, whole.patches),
        (found.layers[:, 0], whole.layers[:, 0]),
        (found.keys.movedim(1, 2).flatten(2), whole.keys.movedim(1, 2).flatten(2)),
    ):
        torch.testing.assert_close(one[is_used], other[is_used])
        assert not one[~is_used].any()


def test_a_frame_that_is_no_multiple_of_the_tile_size_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match=r"not a multiple of 28 px, .*; use 28 or 56"):
        load_vision_encoder(VisionConfig(name=str(folders["internvl_vision"]), frame=42))


@torch.no_grad()
def test_naflex_takes_the_same_patches_as_its_processor(folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["siglip2"])
    image = frames(1)[0, :, :28, :42]
    padded = torch.zeros(1, 3, FRAME, FRAME)
    padded[0, :, :28, :42] = image
    processed = Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=6, do_resize=False)(
        [(image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()], return_tensors="pt"
    )
    states = encoder.model(**processed).last_hidden_state
    found = encoder.encode(padded, [(28, 42)]).patches[0].unflatten(0, encoder.grid)
    torch.testing.assert_close(found[:2, :3].flatten(0, 1), states[0, :6], atol=1e-4, rtol=1e-4)
    assert not found[2:].any()
    assert not found[:, 3:].any()


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
@torch.no_grad()
def test_qwen_takes_the_same_patches_as_its_processor(folders: dict[str, Path], kind: str) -> None:
    """Compared after the merger, whose input is the four patches of each square, in its order."""
    encoder = encoder_of(folders[kind])
    image = frames(1)[0, :, :28, :]
    padded = torch.zeros(1, 3, FRAME, FRAME)
    padded[0, :, :28] = image
    processor = Qwen2VLImageProcessor(patch_size=PATCH, do_resize=False, image_mean=CLIP[0], image_std=CLIP[1])
    processed = processor([(image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()], return_tensors="pt")
    model: Any = encoder.model
    expected = model(processed["pixel_values"], grid_thw=processed["image_grid_thw"]).pooler_output
    found = encoder.encode(padded, [(28, FRAME)]).patches[0].unflatten(0, encoder.grid)
    squares = torch.stack([found[:2, :2].flatten(0, 1), found[:2, 2:].flatten(0, 1)]).flatten(0, 1)
    torch.testing.assert_close(model.merger(squares), expected, atol=1e-4, rtol=1e-4)
    assert not found[2:].any()


@every_native
@torch.no_grad()
def test_an_image_of_native_resolution_is_the_same_alone_and_in_a_batch(folders: dict[str, Path], kind: str) -> None:
    encoder, padded = encoder_of(folders[kind]), frames(3)
    sizes = [(28, FRAME), (FRAME, 28), (FRAME, FRAME)]
    together = encoder.encode(padded, sizes, has_attention=True, layers=(1,))
    for index in range(3):
        alone = encoder.encode(padded[index : index + 1], sizes[index : index + 1], has_attention=True, layers=(1,))
        for name in ("patches", "keys", "layers"):
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[index], atol=1e-5, rtol=1e-5)


@every_native
@torch.no_grad()
def test_native_resolution_ignores_the_padding(folders: dict[str, Path], kind: str) -> None:
    encoder, padded = encoder_of(folders[kind]), frames(1)
    other = padded.clone()
    other[:, :, 28:] = 1 - other[:, :, 28:]
    size = [(28, FRAME)]
    assert torch.equal(encoder.encode(padded, size).patches, encoder.encode(other, size).patches)
    assert not torch.equal(encoder(padded), encoder(other))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("clip", CLIP), ("siglip", HALF), ("dinov3_vit", IMAGENET), ("qwen2_vl", CLIP), ("internvl_vision", IMAGENET)],
)
def test_a_checkpoint_without_preprocessing_uses_that_of_its_family(
    folders: dict[str, Path], kind: str, expected: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    encoder = encoder_of(folders[kind])
    np.testing.assert_allclose(encoder.mean.flatten(), expected[0], rtol=1e-6)
    np.testing.assert_allclose(encoder.std.flatten(), expected[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\x10"),
        ("config.json", b'{"model_ty'),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "internvl_chat", "auto_map": {"AutoConfig": "configuration.Config"}}'),
        ("preprocessor_config.json", b'{"image_mean": ['),
        ("preprocessor_config.json", b'{"image_mean": 1}'),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence_and_runs_no_code(
    folders: dict[str, Path], tmp_path: Path, file: str, content: bytes
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders["clip"] / name).read_bytes())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read") as raised:
        encoder_of(tmp_path)
    assert "\n" not in str(raised.value)


@every_family
def test_a_missing_or_unexpected_weight_is_refused(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders[kind] / name).read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    of_vision = [key for key in state if "text_model" not in key and not key.startswith(("model.layers", "lm_head"))]
    removed = next(
        key for key in of_vision if key.endswith(("norm1.weight", "norm_before.weight", "layernorm_before.weight"))
    )
    save_file(
        {key: value for key, value in state.items() if key != removed}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(WeightsError, match=f"missing: .*{removed.split('.')[-2]}"):
        encoder_of(tmp_path)
    added = removed.replace(".weight", ".another")
    save_file({**state, added: torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"unexpected: .*\.another"):
        encoder_of(tmp_path)


def test_normalisation_loads_from_the_files_of_both_versions_of_transformers(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    of_processor = {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}}
    (folder / "processor_config.json").write_text(json.dumps(of_processor))
    assert encoder_of(folder).preprocessing_id == "mean (0.1, 0.2, 0.3) std (1.0, 2.0, 3.0)"
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.4, 0.4]}))
    assert encoder_of(folder).preprocessing_id == "mean (0.4, 0.4, 0.4) std (1.0, 2.0, 3.0)"
    for invalid in ({"image_mean": [0.5, 0.5]}, {"image_std": [1, 0, 1]}, {"image_mean": ["a", "b", "c"]}):
        (folder / "preprocessor_config.json").write_text(json.dumps(invalid))
        with pytest.raises(WeightsError, match="cannot be read"):
            encoder_of(folder)
