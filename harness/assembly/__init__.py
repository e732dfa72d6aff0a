"""Builds a cell's model, caches and batches; saves and loads its checkpoint.

A cell's specification comes in; a `Segmenter` and a `BatchMaker` go out. It imports `cache`, `superpixels`, `data`,
`model`, `study` and `system`.
"""
