"""The superpixel sources: one file, one source, one name in YAML."""
