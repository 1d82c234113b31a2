"""``hil lab``: check a lab without touching it, keep a lab running for work by hand, and restore hosts."""

import json
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import termios
import time
import tty
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hil.cli.options import LabType, give_up, lab_of, or_give_up
from hil.cli.tests import suite_arguments
from hil.errors import HilError
from hil.files import passing_folder
from hil.labs import supervisor as running
from hil.labs.kinds import kind_of
from hil.labs.named import DEFAULT
from hil.labs.needs import Need
from hil.labs.schema import LabFile
from hil.progress import harmless
from hil.suite import CONTRACT, FAULTS
from hil.waiting import wait_until

# The first start of a lab includes the build and boot of the guest image.
UP_TIMEOUT_S, DOWN_TIMEOUT_S = 900.0, 60.0
POLL_S = 0.1


@click.group()
def lab() -> None:
    """Check labs, and work with one by hand."""


LAB_FILE = click.argument("file", type=LabType(), default=DEFAULT)


@lab.command()
@LAB_FILE
@click.option("--tests", "listed", is_flag=True, help="Name each test that will be unsupported.")
def check(file: Path, listed: bool) -> None:
    """Show which tests will run on the lab of FILE, and which will be unsupported and why. The nodes are not touched.

    Exit code 2 when the file has mistakes.
    """
    known = lab_of(file)
    click.echo("\n".join(described(known)))
    told = or_give_up(lambda: unsupported(file))
    click.echo("\n".join(outlook(told, listed=listed)))


def described(known: LabFile) -> list[str]:
    """Lines that describe a lab: its parts, the needs that it meets, and those that it does not meet."""
    kind = kind_of(known)
    lines = [f"lab {known.lab.name} ({known.lab.kind})", *kind.described(known)]
    missing = kind.lacks(known)
    how = {Need.CAPTURE: f": {kind.guarantee(known)}"}
    lines += [f"  has    {need}{how.get(need, '')}" for need in Need if need not in missing]
    lines += [f"  lacks  {need}: {reason}" for need, reason in missing.items()]
    return lines + [f"  doubt  {doubt}" for doubt in kind.doubts(known)]


def unsupported(file: Path) -> dict[str, str]:
    """Each test of the contract and of the faults, with the reason why the lab cannot run it or an empty text.

    Raises HilError.
    """
    with passing_folder("hil-") as folder:
        out = folder / "unsupported.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            *suite_arguments(),
            f"--hil-lab={file.absolute()}",
        ]
        command += [f"--hil-unsupported={out}", str(CONTRACT), str(FAULTS)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode != 0:
            raise HilError(f"the tests could not be collected:\n{done.stdout}{done.stderr}")
        found: dict[str, str] = json.loads(out.read_text())
        return found


def outlook(told: dict[str, str], *, listed: bool) -> list[str]:
    """Lines with the number of tests that will run, and the number that will not, by reason."""
    reasons = Counter(reason for reason in told.values() if reason)
    lines = [
        f"{len(told) - reasons.total()} tests of contract and faults will run, {reasons.total()} will be unsupported"
    ]
    for reason, count in reasons.most_common():
        lines.append(f"  {count:4}  {reason}")
        lines += [f"          {test}" for test, why in told.items() if listed and why == reason]
    return lines


@lab.command()
@LAB_FILE
def up(file: Path) -> None:
    """Make the lab of FILE and keep it running, apart from this terminal, until ``hil lab down``."""
    known = lab_of(file)
    name = known.lab.name
    _labs(running.labs)
    folder = or_give_up(running.runtime_folder) / name
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        give_up(f"lab {name} runs already; end it with: hil lab down {name}")
    if kind_of(known).lasting:
        (folder / "hosts").write_bytes(os.fsencode(file.absolute()))
    command = [sys.executable, "-m", "hil.labs.supervisor", str(file.absolute()), str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        # This command writes the file, not the supervisor. Without it another command would remove the folder.
        (folder / "pid").write_text(str(process.pid))
        _wait_up(process, folder)
    except KeyboardInterrupt:
        # The supervisor has its own session, so Ctrl-C did not reach it.
        _end(process, folder)
        raise
    _show(folder)


def _end(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """End a supervisor that is making its lab. The supervisor undoes its changes."""
    process.terminate()
    try:
        process.wait(DOWN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _wait_up(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    shown = 0

    def ended_or_up() -> str:
        nonlocal shown
        # Check before the log is read, so that the log of an ended supervisor is complete.
        ended = process.poll() is not None
        text = (folder / "log").read_text(errors="replace")
        click.echo(text[shown:], nl=False, err=True)
        shown = len(text)
        return "ended" if ended else "up" if running.answers(folder) else ""

    if wait_until(ended_or_up, UP_TIMEOUT_S, "start of the lab", strict=False, poll_s=POLL_S) != "up":
        _labs(running.labs)
        _end(process, folder)
        sys.exit(2)


def _labs(among: Callable[[], dict[str, Path]]) -> dict[str, Path]:
    """The labs that ``among`` returns. Labs on hosts that were killed are reported to the user once."""
    for folder, file in or_give_up(running.killed).items():
        restoring = shlex.join(["hil", "lab", "restore", harmless(str(file))])
        click.echo(f"hil: lab {folder.name} was killed; undo its changes on the hosts with: {restoring}", err=True)
    return or_give_up(among)


def _chosen(name: str, among: Callable[[], dict[str, Path]] = running.running) -> Path:
    """The folder of the running lab ``name``, or of the only one. If there is none, ends the program with 2."""
    known = _labs(among)
    if not known:
        give_up("no lab runs; start one with: hil lab up")
    if name not in known and (name or len(known) > 1):
        give_up(f"name one of the running labs: {', '.join(known)}")
    return known[name] if name else next(iter(known.values()))


def _show(folder: Path) -> None:
    status = or_give_up(lambda: running.ask(folder, {"do": "status"}))
    click.echo(f"{folder.name}: {status['lab']}, for {status['seconds']} s, process {status['pid']}")
    for name, text in status["nodes"].items():
        click.echo(f"  {name}: {text}")
    click.echo(f"  {status['capture']}")


NAME = click.option("--name", default="", help="The name of the running lab, if there are several.")
NODE = click.argument("node")


@lab.command()
def status() -> None:
    """Show the running labs, their nodes, and the number of recorded frames."""
    for folder in _labs(running.running).values():
        _show(folder)


@lab.command()
@NAME
@NODE
@click.option("--follow", is_flag=True, help="Continue until interrupted.")
def console(name: str, node: str, follow: bool) -> None:
    """Print the console output of NODE. For a host, this is the output of ssh and of the agent."""
    folder = _chosen(name)
    paths = [path for path in (folder / "pair" / f"console-{node}", folder / f"console-{node}") if path.exists()]
    if not paths:
        give_up(f"there is no console of a node {node!r}")
    with paths[0].open(errors="replace") as text:
        while True:
            click.echo(text.read(), nl=False)
            if not follow or not folder.exists():
                return
            time.sleep(POLL_S)


@lab.command(context_settings={"ignore_unknown_options": True})
@NAME
@NODE
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(name: str, node: str, command: tuple[str, ...]) -> None:
    """Open a shell on NODE, or run COMMAND there and end with its exit status.

    COMMAND is killed after 30 s. Run longer commands in the shell.
    """
    folder = _chosen(name)
    if command:
        request: dict[str, Any] = {"do": "run", "node": node, "command": list(command)}
        done = or_give_up(lambda: running.ask(folder, request, 2 * running.RUN_TIMEOUT_S))
        click.echo(done["stdout"], nl=False)
        click.echo(done["stderr"], nl=False, err=True)
        sys.exit(done["status"])
    control = or_give_up(lambda: running.connect(folder))
    size = shutil.get_terminal_size()
    request = {"do": "shell", "node": node, "rows": size.lines, "columns": size.columns}
    or_give_up(lambda: running.converse(control, request | {"term": os.environ.get("TERM", "dumb")}))
    _terminal(control)


def _terminal(control: socket.socket) -> None:
    """Join this terminal and the node's until either ends."""
    control.settimeout(None)
    ours = sys.stdin.fileno()
    before = termios.tcgetattr(ours) if os.isatty(ours) else None
    sources: list[int | socket.socket] = [control, ours]
    try:
        if before is not None:
            tty.setraw(ours)
        while True:
            ready, _, _ = select.select(sources, [], [])
            if control in ready:
                if not (data := control.recv(1 << 16)):
                    return
                os.write(sys.stdout.fileno(), data)
            if ours in ready:
                data = os.read(ours, 1 << 16)
                # At the end of an input file, send Ctrl-D, as a user at a terminal would.
                control.sendall(data or b"\x04")
                sources = sources if data else [control]
    finally:
        if before is not None:
            termios.tcsetattr(ours, termios.TCSADRAIN, before)


@lab.command()
@click.argument("name", default="")
def down(name: str) -> None:
    """End a lab that runs or is being made: its nodes stop, hosts are restored, and its recording is removed.

    Exit code 2 when a change could not be undone. The change is named.
    """
    folder = _chosen(name, running.labs)
    # For a lab that is being made, "up" reports the errors.
    runs = running.answers(folder)
    running.end(folder)
    if not wait_until(lambda: not running.lives(folder), DOWN_TIMEOUT_S, "end of the lab", strict=False, poll_s=POLL_S):
        give_up(f"lab {folder.name} did not end within {DOWN_TIMEOUT_S:.0f} s: see {folder}/log")
    # A supervisor that could undo all changes has removed its folder.
    last_words = (folder / "log").read_text(errors="replace").strip() if (folder / "log").exists() else ""
    or_give_up(running.labs)
    if runs and last_words:
        give_up(f"lab {folder.name} is down, but not all changes were undone:\n{last_words}")
    click.echo(f"hil: lab {folder.name} is down")


@lab.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Restore even where a bench is at work.")
def restore(file: Path, force: bool) -> None:
    """Undo the changes of provisioning on the hosts of FILE, after a run that could not undo them.

    A change that cannot be undone is named and stays noted, and the exit code is 2. A host where a bench is at work is
    not changed. Guests need no restoring: they end with their run.
    """
    known = lab_of(file)
    kind = kind_of(known)
    if not kind.lasting:
        click.echo(f"hil: the nodes of {known.lab.name} end with each run, so there is nothing to restore")
        return
    done = or_give_up(lambda: kind.restore(known, file.absolute().parent, force=force))
    for name, changes in done.undone.items():
        click.echo("\n".join([f"node {name}: {len(changes)} changes undone", *changes]))
    if done.failed:
        give_up("\n".join(f"node {name}: {why}" for name, why in done.failed.items()))
    for folder, of in or_give_up(running.killed).items():
        if of == file.absolute():
            shutil.rmtree(folder, ignore_errors=True)
