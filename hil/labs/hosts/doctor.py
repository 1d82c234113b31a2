"""Examine labs of hosts: the software of each host, and the state of its adapter."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hil.errors import HilError
from hil.files import passing_folder
from hil.labs.findings import Finding, Level, rdma_here
from hil.labs.hosts.file import Adapter, HostsFile, NodeSection
from hil.labs.hosts.host import Host
from hil.labs.hosts.kinds import capture_kind, node_kind
from hil.labs.hosts.lab import addresses, not_ready, outside, provisioning, reason, resolved
from hil.labs.hosts.needs import doubts

# The first Linux whose soft-RoCE works inside network namespaces.
NAMESPACES_SINCE = 7


def examine(lab: HostsFile, base: Path) -> Iterator[Finding]:
    """Examine each host of a lab, and change nothing."""
    wanted = (finding for section in lab.nodes.values() for finding in node_kind(section).examine(section))
    yield from dict.fromkeys(wanted)
    yield from (Finding(Level.WARNING, "lab file", doubt) for doubt in doubts(lab))
    for name in lab.nodes:
        yield from _host(lab, name, base)
    yield rdma_here(needed=any(node_kind(section).here for section in lab.nodes.values()))


def _host(lab: HostsFile, name: str, base: Path) -> Iterator[Finding]:
    section = next(node for known, node in lab.nodes.items() if known == name)
    what, adapter = f"node {name}", section.adapter
    with passing_folder("hil-") as folder:
        try:
            host = Host(name, outside(section), base, folder / "console", lambda node, worker, event: None)
            try:
                host.wait_ready()
                wanted: dict[str, Any] = {}
                if adapter:
                    adapter = resolved(host, adapter)
                    wanted = {"device": adapter.device, "netdev": adapter.netdev, "addresses": addresses(adapter)}
                facts = host.system("inspect", **wanted)
                foreseen = _foreseen(host, section, adapter)
            finally:
                host.stop()
        except HilError as error:
            yield Finding(Level.BAD, what, reason(name, error))
            return
    machine = facts["machine"]
    described = [machine.get(key, "") for key in ("distribution", "kernel")] + [f"Python {machine.get('python', '')}"]
    yield Finding(Level.OK, what, ", ".join(text for text in described if text))
    if adapter:
        yield from adapter_findings(adapter, facts, what, outside(section).namespace, foreseen)
    yield from _namespace(section, what, machine.get("kernel", ""))
    if name == capture_kind(lab).node(lab.capture):
        yield from capture_kind(lab).examine(lab.capture, lab, facts)


def _foreseen(host: Host, section: NodeSection, adapter: Adapter | None) -> list[str]:
    """The reasons why the node would refuse to provision its adapter. Missing prerequisites are reported elsewhere."""
    wanted = provisioning(adapter, section.namespace if section.make_namespace else "") if adapter else {}
    return list(host.system("foresee", **wanted)) if wanted else []


def _namespace(section: NodeSection, what: str, kernel: str) -> Iterator[Finding]:
    number = re.match(r"\d+", kernel)
    soft = section.adapter is not None and section.adapter.soft_roce
    if section.namespace and soft and number and int(number[0]) < NAMESPACES_SINCE:
        seen = f"soft-RoCE of Linux {kernel} sends nothing from inside a network namespace"
        yield Finding(Level.WARNING, what, seen, f"take Linux {NAMESPACES_SINCE} or newer for it")


def adapter_findings(
    adapter: Adapter, facts: dict[str, Any], what: str, namespace: str = "", foreseen: Iterable[str] = ()
) -> Iterator[Finding]:
    """Check that an adapter is as the lab file describes it, or can be provisioned so."""
    if problems := not_ready(adapter, facts, provisioned=False, namespace=namespace):
        yield from (Finding(Level.BAD, what, problem.seen, problem.mend) for problem in problems)
        return
    if refused := [Finding(Level.BAD, what, text) for text in foreseen]:
        yield from refused
        return
    having = ", ".join(addresses(adapter))
    if not_ready(adapter, facts):
        yield Finding(Level.OK, what, f"{adapter.device} on {adapter.netdev} will be made for the run, with {having}")
    else:
        yield Finding(Level.OK, what, f"{adapter.device} is ACTIVE with {having}")
