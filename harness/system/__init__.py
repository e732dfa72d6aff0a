"""The machine and its files: device, precision, environment, atomic writes, URIs, fingerprints of source code.

Input: names and paths. Output: plain values and files. It imports only `errors`.
"""
