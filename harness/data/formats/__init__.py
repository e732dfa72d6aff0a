"""Readers of the published file formats of datasets; a damaged file raises one clear DataError."""
