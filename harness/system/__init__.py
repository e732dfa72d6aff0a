"""This machine and its files: device, precision, environment, atomic files, URIs, fingerprints of source code.

Nothing comes in but names and paths; facts and whole files go out. It imports only `errors`.
"""
