"""Optuna's storage as the queue of a study's cells, and the only package that imports Optuna.

Input: a study and its rows. Output: claimed cells, sampled points, importance. It imports `study`, `results` and below.
"""
