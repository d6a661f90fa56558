import subprocess
import sys

# In a process of its own: the tests' process has already left its modules out.
PROGRAM = """
import gc
from deploy.loading import loading

with loading():
    assert not gc.isenabled()
    garbage = []
    garbage.append(garbage)
assert gc.isenabled()
left_out = gc.get_freeze_count()
assert left_out > 0

more = [[] for _ in range(1_000)]
with loading():
    assert gc.isenabled(), "a later import has no pause"
assert gc.get_freeze_count() == left_out, "objects of the command stay collectable"
"""


def output_of(program: str) -> str:
    """The standard output of a Python program in a process of its own, which must succeed."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loading_pauses_the_collector_once_and_leaves_out_the_loaded_objects() -> None:
    output_of(PROGRAM)


def test_loading_ends_the_pause_after_a_failed_import() -> None:
    program = """
import gc
from deploy.loading import loading

try:
    with loading():
        import no_such_module
except ImportError:
    assert gc.isenabled()
"""
    output_of(program)


def test_the_monitor_and_the_page_read_the_registry_without_loading_pytorch() -> None:
    program = """
import sys
import deploy.serve.registry_report
import flows.monitor
import pipeline.history.table
import pipeline.registry.training_run
import pipeline.registry.versions

assert "torch" not in sys.modules
"""
    output_of(program)
