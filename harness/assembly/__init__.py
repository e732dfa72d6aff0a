"""Puts a cell's parts together: model, caches and batches; reads and writes its checkpoint.

A cell's specification comes in; a segmenter and a maker of batches go out. It imports `cache`, `superpixels`, `data`,
`model`, `study` and `system`.
"""
