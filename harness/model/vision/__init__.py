"""Vision encoders and their families."""
