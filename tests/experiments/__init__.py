"""Tests of grids: what is asked for, what it costs, and that it survives."""
