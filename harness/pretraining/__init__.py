"""Training of the small SAM and the small CLIP that ship with this package."""
