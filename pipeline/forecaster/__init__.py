"""The streaming consumer: readings in, forecasts out, each sensor's state carried, exactly once.

``loop`` is where to begin: it polls, hands records to ``micro_batch``, and ``transaction`` makes what comes out of it
visible in one transaction. ``partitions`` restores states (``restore``, ``rebuild``) before a partition is served;
``champion``, ``rewarm`` and ``model_swap`` change the model without a pause.
"""
