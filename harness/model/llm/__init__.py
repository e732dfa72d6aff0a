"""LLMs, from scratch and pretrained, and the packing of expressions."""
