"""Plans, requirements and lists of names, for a study that has not run yet.

Input: a study and rows of earlier runs. Output: plans, requirements and lists. It does not import `execution`.
"""
