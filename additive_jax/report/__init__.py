"""The results of a run: statistics of its tables, pictures, and one page. No JAX, no model.

statistics   means with intervals, ranks, the Pareto front, what each gate does
rankings     how far a ranking of structures can be trusted
paths        what tokens chose: paths, specialisation, compute, reuse
figures/     a function for each picture; a file for each subject
page         a page as a tree of pieces: tiles, pictures, tables, text
wording      how numbers and names read
"""
