"""Connections rebuilt from the packets of any capture, in one pass and bounded memory."""
