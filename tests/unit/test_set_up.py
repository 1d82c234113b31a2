"""The set-up scripts say what is missing and how to mend it."""

import subprocess
from pathlib import Path

COMMON = Path(__file__).parents[2] / "lab" / "common.sh"


def test_without_root_and_sudo_the_exact_command_is_printed_and_the_exit_code_is_2() -> None:
    """A user who may not install packages is told what to run."""
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
    """No network for the packages: exit code 2."""
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
