"""A benchmarking and ablation harness for visual projectors in MLLM-based referring image segmentation."""
