"""The datasets: one file, one dataset, one name in YAML."""
