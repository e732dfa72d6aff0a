"""The tokenizer of clip-scenes: one token per word of a scene's caption."""

from itertools import product

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from harness.data.scenes.phrases import Phrase
from harness.data.scenes.scene import COLOURS
from harness.data.scenes.shapes import SHAPES, TEXTURES

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
"""In this order, so that [EOS] does not have id 2, for which transformers takes the highest id of a text as its end."""
COUNTS = ("a", "an", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_TOKENS = 48
"""Nine objects of four words, the separators between them, [BOS] and [EOS]."""


def caption_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer that encodes a caption as [BOS], its words and commas, [EOS]."""
    phrases = [
        Phrase(*appearance).text(plural=p) for *appearance, p in product(TEXTURES, COLOURS, SHAPES, (False, True))
    ]
    words = sorted({",", "and", *COUNTS, *" ".join(phrases).split()})
    ids = {word: index for index, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, ids[word]) for word in (SPECIAL["bos_token"], SPECIAL["eos_token"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **SPECIAL)
