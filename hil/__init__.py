"""Hardware-in-the-loop test bench for SAN adapters."""

__version__ = "0.1.0"
