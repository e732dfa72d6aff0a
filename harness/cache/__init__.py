"""Frozen outputs on disk: encodings, mask candidates, superpixel labels. No other package loads or saves them.

Examples come in; tensors and label maps go out, computed where they are missing, each by one process. It imports
`superpixels`, `data`, `model`, `system` and the projector contract.
"""
