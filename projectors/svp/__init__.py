"""SVP: one visual token per superpixel. `svp.py` is the projector, the other files are its named parts."""
