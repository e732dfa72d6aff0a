"""Documents as nodes that know where each value was written: a YAML file or a mapping in, nodes or problems out."""
