"""A signal that must end a program ends it in every situation."""

import signal
import subprocess
import sys

# The interrupt comes while an object is finalised, where the interpreter cannot pass an exception on.
PROGRAM = """
import os, signal, time
{mended}
class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
held = Held()
del held
time.sleep(5)
print("still here")
"""
LOSES = """
class Bad:
    def __del__(self):
        1 / 0
bad = Bad()
del bad
print("on")
"""
MENDED = "import hil.interrupts; hil.interrupts.lose_none(KeyboardInterrupt, signal.SIGINT)"


def test_an_interrupt_that_the_interpreter_loses_is_repeated() -> None:
    """Ctrl-C in a finaliser, whose exceptions are only printed, still ends the program."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(mended=MENDED)], capture_output=True, timeout=60)

    assert done.returncode == -signal.SIGINT
    assert b"still here" not in done.stdout


def test_other_lost_exceptions_reach_the_earlier_hook() -> None:
    """Exceptions other than interrupts go to the earlier hook for lost exceptions, and do not end the program."""
    program = f"import signal\n{MENDED}\n{LOSES}"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)

    assert done.returncode == 0 and done.stdout == b"on\n"
    assert b"ZeroDivisionError" in done.stderr


GIVES_BACK = """
import os, signal
from hil.interrupts import end_by_any, undisturbed
signal.signal(signal.SIGHUP, signal.SIG_IGN)
end_by_any()
os.kill(os.getpid(), signal.SIGHUP)
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("ends")
with undisturbed("giving back"):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
    print("given back")
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("ends again")
"""


def test_an_undisturbed_block_is_not_interrupted() -> None:
    """Each signal that ends a program acts as Ctrl-C; an ignored signal stays ignored. An undisturbed block continues
    and prints its message."""
    done = subprocess.run([sys.executable, "-c", GIVES_BACK], capture_output=True, text=True, timeout=60)

    assert done.stdout.split("\n") == ["ends", "given back", "ends again", ""], done
    assert done.stderr.count("hil: giving back") == 3
