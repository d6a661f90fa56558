"""``make bench``: measure speed, and write SPEED.md beside this file.

``python -m tests.benchmarks SECTION...`` measures only those sections. The exit code is 1 if a promise is not met.
"""

import argparse
import importlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from deploy.jars import read_lock
from deploy.stack import Stack
from pipeline.settings import Settings
from tests.benchmarks import page, sides
from tests.ports import free_ports

REPORT = Path(__file__).with_name("SPEED.md")
# Modules of this folder, in the order of the page. "rates" comes early, because the start of MLflow occupies a core.
SECTIONS = (
    "decoding",
    "rates",
    "profile",
    "latency",
    "serve",
    "pixels",
    "takeover",
    "swap",
    "restore",
    "changelog",
    "hostile",
    "metrics",
    "extras",
)

WITHOUT_SERVERS = ("decoding",)
WITHOUT_MLFLOW = (*WITHOUT_SERVERS, "rates", "profile", "hostile", "metrics")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"one of {', '.join(SECTIONS)}; default: all")
    chosen = parser.parse_args().sections or SECTIONS
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section: {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    home = Path(tempfile.mkdtemp(prefix="streamgru-bench-"))
    kafka, mlflow, prefect = free_ports(3)
    settings = Settings(
        home=home,
        features=sides.FEATURES,
        targets=sides.FEATURES[:1],
        stack={"kafka_port": kafka, "mlflow_port": mlflow, "prefect_port": prefect},
    )
    stack = Stack(settings)
    missed: list[str] = []
    try:
        for name in (name for name in SECTIONS if name in chosen):
            if name not in WITHOUT_SERVERS:
                stack.up(("kafka",))
            if name not in WITHOUT_MLFLOW:
                stack.up(("mlflow",))
            began = time.monotonic()
            section = importlib.import_module(f"tests.benchmarks.{name}").measure(settings)
            print(f"{section.as_markdown()}\n\nIt took {time.monotonic() - began:.0f} s.\n", flush=True)
            missed += section.unmet()
            page.write(REPORT, [section], SECTIONS, _machine())
    finally:
        stack.down()
        shutil.rmtree(home, ignore_errors=True)
    print(f"written to {REPORT}")
    for line in missed:
        print(f"NOT MET: {line}")
    sys.exit(1 if missed else 0)


def _machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("kafka-python", "torch", "polars", "deltalake"))
    kafka = next(jar.coordinate.rpartition(":")[2] for jar in read_lock() if ":kafka-clients:" in jar.coordinate)
    memory_gib = psutil.virtual_memory().total / 2**30
    return (
        f"Machine: {_processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()}. "
        f"Python {platform.python_version()}, {versions}, Apache Kafka {kafka}."
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
