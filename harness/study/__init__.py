"""From a YAML file or a mapping to a checked `Study` and its `Cell`s.

A file with its preset and overrides comes in; a study without mistakes goes out, or every mistake with its place. It
imports `results` (metrics and claims), `data`, `superpixels` and `model` (settings only), and `system`.
"""
