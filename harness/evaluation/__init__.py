"""Scores and measures a trained segmenter: masks, answers, controls, FLOPs, latency.

A segmenter and examples come in; samples, metrics and costs go out. It imports `assembly`, `model`, `data`, `results`
and `system`.
"""
