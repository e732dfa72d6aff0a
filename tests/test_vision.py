"""The vision encoder: loaded exactly, frozen, and with pretrained weights that matter."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import skimage.data
import skimage.transform
import torch
import torch.nn.functional as F
from einops import rearrange
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from harness.cache.encodings import PatchCache, VisionCache
from harness.data.frame import Frame, to_tensor
from harness.errors import WeightsError
from harness.model.config import VisionConfig
from harness.model.vision import dinov2_onnx
from harness.model.vision.encoder import RANDOM, VisionEncoder, load_vision_encoder, names
from harness.model.weights.resolution import resolve
from harness.system.cache_folder import VARIABLE
from tests.tiny import two_objects

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 56,
}


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    return load_vision_encoder(VisionConfig(name="dinov2-small"))


@pytest.fixture(scope="module")
def graph() -> onnx.GraphProto:
    record = resolve("dinov2-small")
    assert record.folder is not None
    return onnx.load(str(record.folder / str(record.file))).graph


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny DINOv2 as `save_pretrained` writes it."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**TINY)).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def rendered_frame() -> Tensor:
    """A gradient with a red box and a blue disk, (1, 3, 224, 224)."""
    row, column = np.mgrid[0:224, 0:224] / 223.0
    frame = np.stack([row, column, (row - column) ** 2]).astype(np.float32)
    frame[:, 60:130, 40:110] = np.array([0.9, 0.1, 0.1], np.float32)[:, None, None]
    frame[:, (row - 0.7) ** 2 + (column - 0.7) ** 2 < 0.03] = np.array([0.1, 0.2, 0.9], np.float32)[:, None]
    return torch.from_numpy(frame)[None]


def photos() -> Tensor:
    """Four photos, (4, 3, 224, 224)."""
    loaded = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    resized = [skimage.transform.resize(photo, (224, 224), anti_aliasing=True) for photo in loaded]
    return torch.from_numpy(np.stack(resized).astype(np.float32)).permute(0, 3, 1, 2)


def test_features_are_those_of_the_original_graph(encoder: VisionEncoder) -> None:
    """Expected values are onnxruntime 1.32's output of the graph's last LayerNorm; they differ by 3e-5."""
    expected = torch.tensor(
        [
            [-1.370907, -0.462186, -0.702951, -0.073317, 4.03039, -0.342258],
            [1.52691, 2.751831, -1.435892, -2.353827, 1.381056, 0.133916],
            [0.34319, -0.520799, 2.091047, -2.49688, -2.313793, 1.145986],
        ]
    )
    patches = encoder(rendered_frame())
    assert patches.shape == (1, 256, 384) == (1, encoder.grid[0] * encoder.grid[1], encoder.width)
    torch.testing.assert_close(patches[0, [0, 100, 187], :6], expected, atol=1e-3, rtol=0)


def test_every_weight_of_the_graph_is_used_once(graph: onnx.GraphProto) -> None:
    state = dinov2_onnx.read_state(graph)
    used = sum(not tensor.name.startswith(dinov2_onnx.IGNORED) for tensor in graph.initializer)
    assert len(state) == used - 1, "the position table is two initialisers"
    assert sum(value.size for value in state.values()) == sum(
        p.numel() for p in Dinov2Model(dinov2_onnx.small()).parameters()
    )


def test_a_graph_with_something_left_over_is_refused(graph: onnx.GraphProto) -> None:
    more = onnx.GraphProto()
    more.CopyFrom(graph)
    more.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "onnx::Add_1"))
    with pytest.raises(WeightsError, match=r"left over \['onnx::Add_1'\]"):
        dinov2_onnx.read_state(more)


def test_a_graph_that_names_a_weight_twice_is_refused(graph: onnx.GraphProto) -> None:
    more = onnx.GraphProto()
    more.CopyFrom(graph)
    more.initializer.append(numpy_helper.from_array(np.zeros((3, 3), np.float32), "onnx::MatMul_1"))
    node = next(
        node for node in graph.node if dinov2_onnx.LINEAR_NODE.fullmatch(node.name) and node.op_type == "MatMul"
    )
    more.node.append(helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["y"], name=node.name))
    with pytest.raises(WeightsError, match="1 names twice"):
        dinov2_onnx.read_state(more)


def matched_share(encoder: VisionEncoder) -> float:
    """Share of patches whose nearest neighbour in the mirrored, recoloured photo lies within one patch of their own."""
    frames = photos()
    original = F.normalize(encoder(frames), dim=-1)
    changed = F.normalize(
        encoder(frames.flip(-1)[:, [2, 0, 1]]).unflatten(1, encoder.grid).flip(2).flatten(1, 2), dim=-1
    )
    found = (original @ changed.mT).argmax(-1)
    position, width = torch.arange(found.shape[1]), encoder.grid[1]
    rows, columns = (found // width - position // width).abs(), (found % width - position % width).abs()
    return float((torch.maximum(rows, columns) <= 1).float().mean())


def test_pretrained_patches_recognise_a_mirrored_recoloured_photo_and_random_ones_do_not(
    encoder: VisionEncoder,
) -> None:
    """Measured 0.36 against 0.10; chance is about 0.03."""
    assert matched_share(encoder) > 0.3
    assert matched_share(load_vision_encoder(VisionConfig(name=RANDOM + "dinov2-small"))) < 0.15


def test_patches_of_an_object_are_more_alike_than_patches_of_two(encoder: VisionEncoder) -> None:
    patches = F.normalize(encoder(rendered_frame())[0].unflatten(0, encoder.grid), dim=-1)
    box, disk = patches[5:9, 3:7].flatten(0, 1), patches[10:12, 10:12].flatten(0, 1)
    assert (box @ box.T).mean() > (box @ disk.T).mean() + 0.2
    assert (disk @ disk.T).mean() > (box @ disk.T).mean() + 0.2


def test_an_image_has_the_same_patches_alone_and_in_a_batch(encoder: VisionEncoder) -> None:
    frames = photos()[:3]
    torch.testing.assert_close(encoder(frames)[1:2], encoder(frames[1:2]), atol=1e-3, rtol=0)


def test_the_encoder_is_frozen_and_stays_in_evaluation_mode(encoder: VisionEncoder) -> None:
    encoder.train()
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_random_weights_are_called_random_and_leave_the_random_state_alone(encoder: VisionEncoder) -> None:
    state = torch.get_rng_state()
    first = load_vision_encoder(VisionConfig(name="random-dinov2-small", frame=56))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    second = load_vision_encoder(VisionConfig(name="random-dinov2-small", frame=56))
    assert first.weights == second.weights
    assert (first.weights.source, first.model_id) == ("random", "random-dinov2-small")
    assert first.weights.sha256 != encoder.weights.sha256
    assert set(names()) == {"clip-scenes", "dinov2-small", "random-dinov2-small"}


def test_a_frame_that_is_no_multiple_of_the_patch_size_is_refused_with_the_nearest_sizes() -> None:
    with pytest.raises(WeightsError, match=r"frame=230 is not a multiple of 14 px, .*; use 224 or 238"):
        load_vision_encoder(VisionConfig(name="dinov2-small", frame=230))


def test_a_folder_loads_with_its_own_normalisation(folder: Path) -> None:
    frames = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}')
    encoder = load_vision_encoder(VisionConfig(name=str(folder), frame=56))
    expected = Dinov2Model.from_pretrained(folder).eval()((frames - 0.5) / 0.25).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder(frames), expected)
    assert (encoder.grid, encoder.width, encoder.weights.source) == ((4, 4), 32, "path")


def test_only_the_mask_token_may_be_absent(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["embeddings.mask_token"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    load_vision_encoder(VisionConfig(name=str(folder), frame=56))
    state["layernorm.scale"] = state.pop("layernorm.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing: layernorm\.weight; unexpected: layernorm\.scale"):
        load_vision_encoder(VisionConfig(name=str(folder), frame=56))


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["layernorm.weight"] = torch.ones(31)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"of another shape: layernorm\.weight"):
        load_vision_encoder(VisionConfig(name=str(folder), frame=56))


def test_register_tokens_are_no_patches(folder: Path) -> None:
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY, num_register_tokens=4)).eval()
    model.save_pretrained(folder)
    encoder = load_vision_encoder(VisionConfig(name=str(folder), frame=56))
    frames = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    expected = model((frames - encoder.mean) / encoder.std).last_hidden_state[:, 5:]
    torch.testing.assert_close(encoder(frames), expected)


def test_an_unsupported_family_is_refused(folder: Path) -> None:
    ViTModel(ViTConfig(**TINY)).save_pretrained(folder)
    with pytest.raises(
        WeightsError, match="model_type 'vit', which is not a supported vision encoder; use one of dinov2"
    ):
        load_vision_encoder(VisionConfig(name=str(folder), frame=56))


def test_an_earlier_block_equals_dinov2s_intermediate_layer(folder: Path) -> None:
    whole, first = (load_vision_encoder(VisionConfig(name=str(folder), frame=56, layer=layer)) for layer in (None, 1))
    frame = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = whole.model((frame - whole.mean) / whole.std, output_hidden_states=True).hidden_states
        torch.testing.assert_close(first(frame), whole.model.layernorm(states[1])[:, 1:])
        torch.testing.assert_close(whole(frame), whole.model.layernorm(states[2])[:, 1:])


def test_blocks_do_not_share_a_cache(folder: Path) -> None:
    folders = {
        PatchCache(load_vision_encoder(VisionConfig(name=str(folder), frame=56, layer=layer)), 56).folder
        for layer in (None, 1, 2)
    }
    assert len(folders) == 2, "the last block is the same by either name"


def test_a_missing_block_is_refused(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"layer=3, but .* has 2 blocks; use 1 to 2"):
        load_vision_encoder(VisionConfig(name=str(folder), frame=56, layer=3))


@torch.no_grad()
def test_attention_and_layers_come_from_the_requested_blocks(folder: Path) -> None:
    encoder = load_vision_encoder(VisionConfig(name=str(folder), frame=56))
    frames = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    found = encoder.encode(frames, has_attention=True, layers=(2, 1))
    model: Any = encoder.model
    states = [model.embeddings((frames - encoder.mean) / encoder.std)]
    for block in model.encoder.layer:
        states.append(block(states[-1]))
    last = model.encoder.layer[1]
    normed = last.norm1(states[1])
    keys, query = (
        rearrange(part(normed), "b n (a k) -> b a n k", a=2) for part in (last.attention.k_proj, last.attention.q_proj)
    )
    torch.testing.assert_close(found.keys, keys[:, :, 1:])
    torch.testing.assert_close(found.cls_query, query[:, :, 0])
    torch.testing.assert_close(found.cls_key, keys[:, :, 0])
    torch.testing.assert_close(found.layers, torch.stack([states[2][:, 1:], states[1][:, 1:]], dim=1))
    torch.testing.assert_close(found.patches, encoder(frames))
    assert encoder.encode(frames).keys is None


def test_the_patch_mask_is_that_of_the_frame(folder: Path) -> None:
    encoder = load_vision_encoder(VisionConfig(name=str(folder), frame=56))
    placed = [Frame.of(size, 56) for size in ((56, 29), (10, 40), (56, 56))]
    found = encoder.encode(torch.zeros(3, 3, 56, 56), [(frame.height, frame.width) for frame in placed]).patch_mask
    assert found.tolist() == [frame.patch_mask(encoder.grid).tolist() for frame in placed]
    assert encoder.encode(torch.zeros(1, 3, 56, 56)).patch_mask.all()


def test_cached_features_are_those_of_the_encoder(folder: Path) -> None:
    encoder = load_vision_encoder(VisionConfig(name=str(folder), frame=56))
    cache = VisionCache(encoder, 56, has_attention=True, layers=(1,))
    examples = [two_objects(0), two_objects(1)]
    cache.ensure(examples, lambda done, total: None)  # noqa: ARG005
    frames = to_tensor([Frame.of(example.size, 56).place_image(example.image) for example in examples])
    with torch.inference_mode():
        computed = cache.compute(frames, [(56, 56)] * 2)
    for name, value in asdict(cache.load(examples)).items():
        torch.testing.assert_close(value, asdict(computed)[name], atol=2e-3, rtol=2e-3)  # stored in float16
