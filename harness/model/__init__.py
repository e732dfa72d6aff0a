"""The segmenter and its parts: vision encoders, LLMs, the linear reader, mask decoders, weights.

Pixels, patches and prompts come in; tokens, hidden states and mask logits go out. It imports only `system`, `errors`
and the projector contract.
"""
