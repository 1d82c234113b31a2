"""A mutant of the example's provider, which the contract's tests must find: ``hil mutants ExampleIsLate``."""

from hil.mutants.catalogue import Layer, Mutant

is_late = Mutant(
    "ExampleIsLate",
    Layer.PROVIDER,
    "Resets a connection one second after the switch asked for it.",
    ("CLOSE-07",),
    "san_example.late:ExampleIsLate",
)
