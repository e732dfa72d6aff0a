"""Known weights, how they are found and checked, and strict loading."""
