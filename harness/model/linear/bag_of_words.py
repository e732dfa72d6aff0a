"""The words of an expression, without their order: the input of the linear reader."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from harness.model.config import LLMConfig
from harness.model.llm.language_model import LanguageModel
from harness.model.llm.tiny import word_tokenizer


class BagOfWords(LanguageModel):
    """Replaces an LLM: it has the tokenizer of `tiny` and the two answers [SEG] and [REJ], but no network.

    Args:
        config: of the LLM `linear`.
        words: the vocabulary; other words are ignored.
    """

    def __init__(self, config: LLMConfig, words: Iterable[str]) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.weights = None
        self.tokenizer = word_tokenizer(words)
        self._token_rows = {}
        self._suffix = ""

    @property
    def width(self) -> int:
        """Number of counts per expression."""
        return len(self.tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """0, because only [SEG] and [REJ] are predicted."""
        return 0

    def format_prompt(self, expression: str) -> str:
        """The expression itself: the words of a template would be the same for all expressions."""
        return expression

    def answer_logits(self, states: Tensor) -> Tensor:
        """states (M, 2), the logits of [SEG] and [REJ] -> the same."""
        return states

    def count_words(self, ids: Tensor, mask: Tensor) -> Tensor:
        """How often each word occurs in each expression.

        Args:
            ids: (S, L) int64.
            mask: (S, L) bool, False for padding.

        Returns:
            (S, V) float. Of the special tokens, [PAD] counts 1 in every expression, as the intercept, and [UNK] 0.
        """
        counts = torch.zeros(len(ids), self.width, device=ids.device).scatter_add_(1, ids, mask.float())
        counts[:, 0] = 1
        counts[:, 1] = 0
        return counts


def word_counts(llm: BagOfWords, texts: list[str]) -> Tensor:
    """`count_words` of these texts, (S, V)."""
    prompts = llm.prompts(texts)
    with torch.no_grad():
        return llm.count_words(prompts.ids, prompts.mask)
