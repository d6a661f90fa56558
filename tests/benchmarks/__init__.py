"""Benchmarks: programs that a person starts. ``make test`` runs none of them.

- ``make bench`` (``python -m tests.benchmarks``): throughput, latency, takeover, restore; writes SPEED.md
- ``make quality`` (``python -m tests.benchmarks.quality``): accuracy on every data set; writes QUALITY.md
- ``make gpu`` (``python3 -m tests.benchmarks.gpu``): training on a GPU beside a CPU; writes GPU.md
- ``python -m tests.benchmarks.training``: time and quality of the default training, memory with 10 M readings
- ``python -m tests.benchmarks.gift_protocol FILE TERM``: accuracy by GIFT-Eval's protocol on one file; prints JSON
"""
