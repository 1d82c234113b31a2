"""The end of a node's console output, and the memory of a node's process."""

import re
from pathlib import Path


def memory_kib(pid: int) -> dict[str, int]:
    """Resident and private memory of a process in KiB."""
    values = {"Rss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount = line.split(":")
        if name in values:
            values[name] = int(amount.split()[0])
    return {"resident": values["Rss"], "private": values["Private_Clean"] + values["Private_Dirty"]}


_CAUSES = re.compile(r"Kernel panic|Oops|BUG:|Trigger a crash|Out of memory|hil: |Traceback|Error\b")


def console_tail(console: Path, lines: int = 4) -> str:
    """The last lines of a console file that name a cause, then its very last lines. Control characters are replaced."""
    try:
        with console.open("rb") as file:
            file.seek(max(0, console.stat().st_size - (1 << 16)))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    cleaned = ["".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines()]
    known = [line[:200] for line in cleaned if line]
    causes = [line for line in known[:-lines] if _CAUSES.search(line)][-lines:]
    return " | ".join([*causes, *known[-lines:]])
