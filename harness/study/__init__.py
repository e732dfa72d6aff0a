"""Loads and checks a `Study` from a YAML file or a mapping, and computes its `Cell`s.

Input: a file or mapping, its preset and overrides. Output: a study, or every problem with its location. It imports
`results` (metrics and claims), `data`, `superpixels` and `model` (settings only), and `system`.
"""
