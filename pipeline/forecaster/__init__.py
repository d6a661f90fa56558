"""The streaming consumer: reads readings, carries each sensor's state, writes forecasts exactly once.

Start with ``loop``, one turn in numbered steps. ``micro_batch`` turns polled records into the content of a
transaction; ``transaction`` commits it. ``partitions`` holds the lifecycle of a partition; ``restore`` and ``rebuild``
bring its states back. ``champion`` and ``model_swap`` replace the model while the old one serves.
"""
