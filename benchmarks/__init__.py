"""Comparisons of continual learning methods: ``python -m benchmarks.compare``."""

import warnings

# Importing avalanche imports qpsolvers, which warns about solvers that nothing here needs.
warnings.filterwarnings("ignore", message="no QP solver found")
