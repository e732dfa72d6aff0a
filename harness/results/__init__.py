"""Metrics, tables of a run, and the scores, comparisons and verdicts computed from them.

Input: rows of cells. Output: two tables, comparisons with intervals, verdicts. It imports only `system` and `errors`,
never torch.
"""
