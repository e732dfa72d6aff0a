"""SVP: one visual token per superpixel. `svp.py` is the projector, the other modules are its parts."""
