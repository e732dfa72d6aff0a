"""Frozen outputs on disk: encodings, mask candidates, superpixel labels. The only package that reads or writes them.

Examples come in; tensors and label maps go out, computed where they are missing. It imports `superpixels`, `data`,
`model`, `system` and the projector contract.
"""
