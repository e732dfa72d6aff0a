"""Training of a segmenter: losses, optimisers, schedules, sampling, the training loop and the trainer.

Input: a segmenter and examples. Output: trained weights and a training curve. Imports `assembly`, `study`, `model`,
`data` and `system`.
"""
