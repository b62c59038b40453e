"""Settings of a run, and the process and machine around it: devices, random state, signals."""
