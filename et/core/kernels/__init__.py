"""Kernels of attention: one contract (:mod:`et.core.kernels.reference`), one module for each way to compute it."""
