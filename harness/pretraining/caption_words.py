"""The words of captions of scenes as tokens, one a word, for the text side of clip-scenes."""

from itertools import product

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from harness.data.scenes.phrases import Phrase
from harness.data.scenes.scene import COLOURS
from harness.data.scenes.shapes import SHAPES, TEXTURES

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
"""In this order; CLIP's text model of transformers takes an end of id 2 for one of the first release, which counted it
as the highest id."""
COUNTS = ("a", "an", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_TOKENS = 48
"""Nine objects of four words, what stands between them, beginning and end."""


def caption_tokenizer() -> PreTrainedTokenizerBase:
    """[BOS], the words and commas of a caption, [EOS]."""
    phrases = [Phrase(*look).text(plural=p) for *look, p in product(TEXTURES, COLOURS, SHAPES, (False, True))]
    words = sorted({",", "and", *COUNTS, *" ".join(phrases).split()})
    ids = {word: index for index, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, ids[word]) for word in (SPECIAL["bos_token"], SPECIAL["eos_token"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **SPECIAL)
