"""Loads PyTorch and the compiled kernel of ``model.adaptation`` on import: forks of this process save seconds.

The first module of a fork server's list, so that the collector pauses while PyTorch loads.
"""

from deploy.loading import loading

with loading():
    from model.adaptation import compile_kernel
    from model.experts import AdaptationConfig
    from pipeline.forecaster import loop as loop

    compile_kernel(AdaptationConfig("light", True, 1, 1, 24, (0.5,), 64, 1))
