"""Smoothed aggregation for symmetric positive definite CSR matrices, classical or learned; numba, no torch."""

from forebay.kernels.amg.solver import AmgSolver
from forebay.kernels.amg.weights import CLASSICAL, AmgWeights

__all__ = ["CLASSICAL", "AmgSolver", "AmgWeights"]
