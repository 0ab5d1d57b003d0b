"""What runs mean: it reads the folder of a grid and its stores, and never trains, calls a teacher or changes a run.

`results` makes one table of a grid's runs; the other modules say what follows from it, beside the paper's figures.
"""
