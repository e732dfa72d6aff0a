"""What a study will run, needs and can name, said before anything runs.

A study and past rows come in; plans, requirements and lists go out. It imports no `execution`.
"""
