"""SAM and its mask decoder."""
