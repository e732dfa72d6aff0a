"""Evaluation of a trained segmenter: masks, answers, controls, FLOPs, latency and images for the gallery.

Input: a segmenter and examples. Output: samples, controls and costs. It imports `assembly`, `model`, `data`, `results`
and `system`.
"""
