"""Importing this loads the compiled core of ``model.adaptation``: forks of a process that has it save a second each."""

from model.adaptation import compile_kernel
from model.experts import AdaptationConfig

compile_kernel(AdaptationConfig("light", True, 1, 1, 24, (0.5,), 64, 1))
