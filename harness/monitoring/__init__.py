"""What a running study shows: progress in the terminal, runs in MLflow.

Events of cells come in; lines, bars and MLflow runs go out. It imports `study`, `results` and `system`.
"""
