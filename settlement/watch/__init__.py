"""The chain, watched by events and by sweeps, and what that says about health."""
