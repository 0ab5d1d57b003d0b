"""Experiments: a grid of runs over both stages, from one purchase of teacher calls.

grid.yaml -> `grid` (what is asked for) -> `plan` (runs and stores) -> `stores` (calls) -> `workers` (students)
-> `execution` (all of it, resumable). What runs mean is `analysis`.
"""
