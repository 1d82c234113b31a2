"""Contradictions between the sections of a lab file of hosts."""

import ipaddress
from collections.abc import Iterator
from typing import Any

import attrs

from hil.adapters.settable import why_not_settable
from hil.labs.hosts.file import PROVISIONED, Adapter, HostsFile, NodeSection
from hil.labs.hosts.kinds import capture_kind
from hil.labs.schema import Name, table


def mistakes(lab: HostsFile, values: dict[str, Any]) -> Iterator[str]:
    """Contradictions between sections that are valid by themselves; ``values`` is the whole file."""
    for name in ("a", "b"):
        node = lab.nodes.get(Name(name))
        written = table(values, "nodes", name)
        if node is None and written is None:
            yield f"[nodes] node {name} is missing: contract tests run between a and b"
        elif node is not None and node.adapter is None and "adapter" not in (written or {}):
            yield f"[nodes.{name}] the section adapter is missing: device, netdev and ipv4 of the tested adapter"
    yield from capture_kind(lab).mistakes(lab.capture, lab, values)
    for name, node in lab.nodes.items():
        yield from _without_a_namespace(name, node, table(values, "nodes", name) or {})
        yield from _not_settings(name, node)
        if node.adapter is not None:
            yield from _no_address(name, node.adapter, table(values, "nodes", name, "adapter") or {})
        if node.adapter is not None and not node.adapter.provision:
            for key in PROVISIONED:
                if getattr(node.adapter, key) != attrs.fields_dict(Adapter)[key].default:
                    yield f"[nodes.{name}.adapter.{key}] the bench sets it only with provision = true"
            continue
        if node.adapter is not None and node.adapter.flow_control is not None and node.namespace:
            yield f"[nodes.{name}.adapter.flow_control] it is a setting of a port: ask for it without a namespace"
        inside = node.namespace and not node.make_namespace
        if inside and node.adapter is not None and node.adapter.traffic_class is not None:
            place = f"[nodes.{name}.adapter.traffic_class]"
            yield f"{place} a namespace has a /sys of its own, without configfs: set it outside, before the run"
    soft = [name for name, node in lab.nodes.items() if node.adapter is not None and node.adapter.soft_roce]
    if soft and not lab.link.soft and not isinstance(table(values, "link", "soft"), str):
        yield f"[link.soft] it is false, and the adapter of node {soft[0]} is soft-RoCE: soft = true"
    known = [ip for node in lab.nodes.values() if (a := node.adapter) for ip in (a.ipv4, a.ipv6) if ip]
    for ip in sorted({ip for ip in known if known.count(ip) > 1}):
        yield f"[nodes] two adapters have the address {ip}"


def _not_settings(name: str, node: NodeSection) -> Iterator[str]:
    """Settings that the bench cannot change."""
    for path in (node.adapter.settings if node.adapter else None) or {}:
        if why := why_not_settable(path):
            yield f"[nodes.{name}.adapter.settings] {path!r} is no setting: {why}"


def _no_address(name: str, adapter: Adapter, written: dict[str, Any]) -> Iterator[str]:
    """IPv4 addresses that are the network or broadcast address of their network.

    ``written`` is the adapter's section of the TOML file.
    """
    if not adapter.provision and "ipv4_prefix" not in written:
        # The file does not give the prefix length. Only the host knows it.
        return
    network = ipaddress.ip_network(f"{adapter.ipv4}/{adapter.ipv4_prefix}", strict=False)
    last = str(network.broadcast_address)
    ends = {str(network.network_address): "names the network", last: "is the broadcast address of"}
    # In a network of two addresses, each belongs to a machine (RFC 3021).
    if network.prefixlen < 31 and adapter.ipv4 in ends:
        yield f"[nodes.{name}.adapter.ipv4] {adapter.ipv4} {ends[adapter.ipv4]} {network}: it is no adapter's address"


def _without_a_namespace(name: str, node: NodeSection, written: dict[str, Any]) -> Iterator[str]:
    """Why the bench cannot make a node's namespace. ``written`` is the node's section of the TOML file."""
    if not node.make_namespace:
        return
    where, adapter = f"[nodes.{name}.make_namespace]", written.get("adapter")
    if not node.namespace and "namespace" not in written:
        yield f"{where} namespace is missing: its name"
    provisioned = isinstance(adapter, dict) and adapter.get("provision")
    if not provisioned and (node.adapter is None or not node.adapter.provision):
        yield f"{where} a netdev is moved only with an adapter that has provision = true"
    elif node.adapter is not None and node.adapter.settings is not None:
        yield f"[nodes.{name}.adapter.settings] they are those of netdevs outside: leave make_namespace out"
