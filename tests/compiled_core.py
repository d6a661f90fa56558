"""Loads the compiled kernel of ``model.adaptation`` on import: forks of this process save a second."""

from model.adaptation import compile_kernel
from model.experts import AdaptationConfig

compile_kernel(AdaptationConfig("light", True, 1, 1, 24, (0.5,), 64, 1))
