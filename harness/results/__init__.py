"""Rows and tables of a run, and the statistics, scores and verdicts computed from them.

Rows of cells come in; two tables, comparisons with intervals and verdicts go out. It imports only `system` and
`errors`, never torch.
"""
