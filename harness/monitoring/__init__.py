"""Shows a running study: progress in the terminal, runs in MLflow.

Input: events of cells. Output: lines, bars and MLflow runs. It imports `study`, `results` and `system`.
"""
