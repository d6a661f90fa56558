"""``python -m tests.side_by_side COMMAND …``: run commands in parallel, print their outputs in turn.

Exits with 1 if a command failed.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import IO

POLL_S = 0.2


def main(commands: list[str]) -> int:
    with ExitStack() as opened:
        running = []
        for command in commands:
            output = opened.enter_context(tempfile.TemporaryFile())
            # No session of its own: Linux compares the niceness of processes only within one session.
            process = subprocess.Popen(
                command,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            opened.callback(_interrupt, process)
            running.append((process, output))
        for process, output in running:
            _show(process, output)
        failed = [command for command, (process, _) in zip(commands, running, strict=True) if process.returncode]
    for command in failed:
        print(f"failed: {command}", file=sys.stderr)
    return int(bool(failed))


def _show(process: "subprocess.Popen[bytes]", output: IO[bytes]) -> None:
    """Print the output of the process until it ends."""
    shown = 0
    while True:
        has_ended = process.poll() is not None
        text = os.pread(output.fileno(), 1 << 20, shown)
        shown += len(text)
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
        if has_ended and not text:
            return
        if not text:
            time.sleep(POLL_S)


def _interrupt(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt the command and its child processes, as Ctrl-C would, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
