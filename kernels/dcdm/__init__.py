"""The deep conjugate direction method as published: the reference that our learned preconditioners are held against.

A convolutional network turns the residual of a Poisson problem on a cube of cells into a search direction.  Source:
Kaneda et al., "A Deep Conjugate Direction Method for Iteratively Solving Linear Systems", ICML 2023, arXiv 2205.10763.
"""
