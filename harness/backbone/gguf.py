"""A causal LM in a GGUF file as a folder that transformers reads: unpacked once, and not again by every cell.

GGUF's own products are for reading only; adapters learn beside plain linear layers.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from harness.backbone.strict import load_strictly, readable
from harness.files import replace_folder

VERSION = "1"
"""Of what `convert` writes."""


def convert(source: Path, name: str, folder: Path) -> None:
    """Writes the model in float32, which holds what it unpacks to exactly, and its tokenizer.

    Raises:
        WeightsError: the file cannot be read, or does not fit the architecture that it names.
    """
    unpacked = GgufConfig(dequantize=True)
    model = load_strictly(
        AutoModelForCausalLM, source.parent, name, gguf_file=source.name, quantization_config=unpacked
    )
    with readable(name):
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)

    def write(partial: Path) -> None:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)

    replace_folder(folder, write)
