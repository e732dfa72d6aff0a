"""Converts DINOv2 from an ONNX graph exported by torch to a folder as `save_pretrained` writes it.

Most weights keep their names in the graph, under `backbone.`. Weight matrices of linear layers do not: each is an
unnamed, transposed initialiser, identified by the MatMul node that is named after its layer. The position embeddings
are split into a CLS row and patch rows. The mask token, which only pre-training uses, is absent.
"""

import re
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file
from transformers import Dinov2Config

from harness.errors import WeightsError

VERSION = 1
"""Version of the conversion; part of the cached folder's name."""
PREFIX = "backbone."
IGNORED = "decoder."
"""Prefix of weights that are not DINOv2's: a saliency head."""
LINEAR_NODE = re.compile(r"/backbone/(?P<layer>.+)/MatMul")


def small() -> Dinov2Config:
    """The architecture of DINOv2 ViT-S/14, without the mask token."""
    return Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        patch_size=14,
        image_size=518,
        use_mask_token=False,
        architectures=["Dinov2Model"],
    )


def read_state(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """The weights under the names of DINOv2 checkpoints on the hub; each initialiser of the backbone is used once.

    Raises:
        WeightsError: an initialiser is left over, or two have the same name.
    """
    left = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    named: list[tuple[str, np.ndarray]] = []
    for node in graph.node:
        match = LINEAR_NODE.fullmatch(node.name) if node.op_type == "MatMul" else None
        if match and node.input[1] in left:
            named.append((f"{match['layer'].replace('/', '.')}.weight", left.pop(node.input[1]).T))
    for name in [name for name in left if name.startswith((PREFIX, IGNORED))]:
        value = left.pop(name)
        if name.startswith(PREFIX):
            named.append((name.removeprefix(PREFIX), value))
    named.append(("embeddings.position_embeddings", _position_table(left)))
    state = {name: np.ascontiguousarray(value) for name, value in named}
    if left or len(state) != len(named):
        raise WeightsError(f"unexpected DINOv2 graph: left over {sorted(left)}, {len(named) - len(state)} names twice")
    return state


def _position_table(left: dict[str, np.ndarray]) -> np.ndarray:
    """Remove the CLS row (1, 1, C) and the patch rows (1, N, C) from `left` and concatenate them."""
    tables = sorted((name for name, value in left.items() if value.ndim == 3), key=lambda name: left[name].shape[1])
    if len(tables) != 2 or left[tables[0]].shape[1] != 1:
        raise WeightsError(f"unexpected DINOv2 graph: no position embeddings among {sorted(left)}")
    return np.concatenate([left.pop(name) for name in tables], axis=1)


def convert(source: Path, folder: Path) -> None:
    """Write config.json and model.safetensors of DINOv2-small."""
    state = read_state(onnx.load(str(source)).graph)
    small().save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
