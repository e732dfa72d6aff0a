"""Models that this package trains itself, before any study runs."""
