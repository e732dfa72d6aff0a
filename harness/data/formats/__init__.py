"""Readers of the files that datasets are published in; they refuse what is damaged with one sentence."""
