"""Trains a segmenter: losses, optimisers, schedules, the trainer.

A segmenter and examples come in; its trained weights and a training curve go out. It imports `assembly`, `model`,
`data` and `system`.
"""
