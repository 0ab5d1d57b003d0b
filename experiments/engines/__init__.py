"""Where the students of a grid are trained: one protocol, on this machine or on a Ray cluster."""
