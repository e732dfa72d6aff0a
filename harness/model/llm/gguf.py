"""A causal LM in a GGUF file as a folder that transformers reads: unpacked once, and not again by every cell.

GGUF's own products are for reading only; adapters learn beside plain linear layers.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from harness.model.weights.strict_loading import load_strictly, readable

VERSION = 1
"""Of what `convert` writes; part of the name under which it is kept."""


def convert(source: Path, folder: Path, name: str) -> None:
    """Writes the model in float32, which holds what it unpacks to exactly, and its tokenizer.

    Args:
        name: of the weights, for the message.

    Raises:
        WeightsError: the file cannot be read, or does not fit the architecture that it names.
    """
    unpacked = GgufConfig(dequantize=True)
    model = load_strictly(
        AutoModelForCausalLM, source.parent, name, gguf_file=source.name, quantization_config=unpacked
    )
    with readable(name):
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
