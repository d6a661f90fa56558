"""Loads PyTorch and the model's compiled kernels on import: forks of this process save seconds.

The first module of a fork server's list, so that the collector pauses while PyTorch loads.
"""

from deploy.loading import loading

with loading():
    from deploy.compile_kernels import compile_step
    from pipeline.forecaster import loop as loop

    compile_step()
