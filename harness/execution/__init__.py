"""Runs the cells of a study: search, worker, the stages of a cell, preflight, timing.

A study and a run folder come in; rows, checkpoints and pictures go out. It may import every other package.
"""
