"""The streaming consumer: readings in, forecasts out, each sensor's state carried, exactly once.

``loop`` is where to begin: it polls, hands records to ``micro_batch``, and ``commit`` makes what comes out of it
visible in one transaction. ``partitions`` restores states (``changelog``, ``replay``) before a partition is served;
``champion``, ``rewarm`` and ``succession`` change the model without a pause.
"""
