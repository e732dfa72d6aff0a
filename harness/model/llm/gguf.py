"""Converts a causal LM from a GGUF file to a transformers folder, once instead of in every cell.

The weights are dequantised, because LoRA requires plain linear layers.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from harness.model.weights.strict_loading import load_strictly, readable

VERSION = 1
"""Version of the conversion; part of the cached folder's name."""


def convert(source: Path, folder: Path, name: str) -> None:
    """Write the dequantised model in float32, which is exact, and its tokenizer.

    Args:
        name: of the weights, for error messages.

    Raises:
        WeightsError: the file cannot be read, or its weights do not match its architecture.
    """
    unpacked = GgufConfig(dequantize=True)
    model = load_strictly(
        AutoModelForCausalLM, source.parent, name, gguf_file=source.name, quantization_config=unpacked
    )
    with readable(name):
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
