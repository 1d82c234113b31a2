"""How fast connections are rebuilt, and that memory does not grow with the file.

Run: python benchmarks/verify.py [--packets 1000000] [--connections 1000]

Builds a capture of its own: connections that each connect, send messages of four packets with an acknowledgement, read
remote memory, and disconnect; their packets are interleaved. Reports packets a second, of processor time so that other
work on the machine does not count, of reading with the bulk scan alone, with the rebuilder on top, and of all that
``hil verify`` does with the ICRC checked; and the peak of memory, for a quarter of the file and for all of it.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hil.capture.bulk import scan
from hil.capture.reader import open_capture
from hil.evidence.rebuild.file import FileRebuild
from hil.evidence.rebuild.judgement import judge
from hil.testing.roce import write


def timed(path: Path, count: int, what: str) -> tuple[float, float]:
    """(packets a second of processor time, peak memory in MiB) of one of the runs in a process of its own."""
    command = [sys.executable, __file__, "--run", what, "--file", str(path)]
    seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return count / float(seconds), float(peak)


def run(what: str, path: Path) -> None:
    """One measurement: prints seconds and the peak of memory in MiB."""
    before = time.process_time()
    with open_capture(path) as capture:
        if what == "scan":
            for chunk in capture:
                scan(chunk)
        else:
            for facts in FileRebuild(capture, check_icrc=what == "whole"):
                judge(facts)
    print(time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--run", choices=["scan", "rebuild", "whole"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        for share in (4, 1):
            path = Path(folder) / f"capture-{share}.pcapng"
            count = write(path, options.packets // share, options.connections)
            print(f"{count} packets of {options.connections} connections, {path.stat().st_size >> 20} MiB")
            for what in ("scan", "rebuild", "whole"):
                rate, peak = timed(path, count, what)
                print(f"  {what:<8} {rate:12,.0f} packets/s of processor time, at most {peak:6.0f} MiB")


if __name__ == "__main__":
    main()
