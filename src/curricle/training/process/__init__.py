"""Process and machine that surround a run: random state, signals, clock, progress."""
