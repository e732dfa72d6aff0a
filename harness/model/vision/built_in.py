"""Names of the vision encoders that the harness can build itself, in a module that imports no model library."""

BUILT_IN = ("dinov2-small",)
RANDOM = "random-"
"""Prefix of a packaged name: the same architecture with random weights. Only used if a study names it."""
