"""``python -m hil`` is the ``hil`` command."""

from hil.cli.main import main

main(prog_name="hil")
