"""Processes that claim cells of a study from the queue and run them, each under a lease.

Input: a study, its run folder and its queue. Output: rows, and returned cells of dead workers. It imports `queue`,
`monitoring` and below; what runs a cell is passed to it.
"""
