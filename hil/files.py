"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_whole(target: Path, text: str) -> None:
    """Write ``text`` beside ``target`` and put it in its place: whoever reads it finds the old text or the new, whoever
    else writes it or is killed. Raises OSError; then ``target`` is what it was."""
    target = target.resolve()
    if target.exists() and not target.is_file():
        # A terminal or a pipe has no place.
        target.write_text(text, encoding="utf-8", errors="replace")
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
