"""Training of a segmenter: losses, optimisers, schedules, sampling, the training loop, the trainer, and the linear fit.

Input: a segmenter and examples. Output: trained weights and a training curve. Imports `assembly`, `study`,
`superpixels`, `model`, `data` and `system`.
"""
