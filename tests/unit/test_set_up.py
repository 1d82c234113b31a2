"""The set-up scripts name missing packages and the command that installs them."""

import subprocess
from pathlib import Path

COMMON = Path(__file__).parents[2] / "lab" / "common.sh"


def test_without_root_and_sudo_the_exact_command_is_printed_and_the_exit_code_is_2() -> None:
    """A user who may not install packages gets the command to run."""
    script = """
        source "$1"
        missing_packages() { printf '%s\\n' qemu-system-x86 zstd; }
        id() { echo 1000; }
        sudo() { return 1; }
        install_system_packages
    """
    done = subprocess.run(["bash", "-c", script, "bash", str(COMMON)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    command = "sudo apt-get update && sudo apt-get install -y --no-install-recommends qemu-system-x86 zstd"
    assert command in done.stderr


def test_a_package_source_that_fails_is_an_error_with_a_question() -> None:
    """Without network for the packages, the exit code is 2."""
    script = """
        source "$1"
        missing_packages() { echo zstd; }
        id() { echo 0; }
        env() { return 100; }
        install_system_packages
    """
    done = subprocess.run(["bash", "-c", script, "bash", str(COMMON)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "is the network there?" in done.stderr
