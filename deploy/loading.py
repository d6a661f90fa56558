"""Imports of large libraries without passes of the garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Pause the garbage collector while the block imports large libraries, once in a process.

    PyTorch, MLflow and Prefect create half a million objects that live as long as the process. The collector would
    visit all of them several times during the imports, which takes a third of their time, and again in every full
    collection later, which stops all threads for a third of a second. After the block, the collector
    leaves these objects out.
    """
    if gc.get_freeze_count() or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
