"""Runs the cells of a study: search, worker, the stages of a cell, preflight, timing.

Input: a study and a run folder. Output: rows, checkpoints and images. It may import every other package.
"""
