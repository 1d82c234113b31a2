"""Lab files: TOML, typed, every mistake reported with its place, unknown keys refused.

``[lab] kind`` says which kind of file it is; the classes below name the sections and keys of each kind.
"""

import copy
import ipaddress
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NewType, get_args, get_origin

import attrs
import cattrs
from cattrs import transform_error
from cattrs.errors import ClassValidationError
from cattrs.gen import make_dict_structure_fn

from hil.adapters.settable import why_not_settable
from hil.errors import LabFileError
from hil.progress import harmless

MAX_LAB_FILE = 1 << 20
MTU_LIMITS = (1280, 9000)
MEMORY_LIMITS = (384, 16384)
NODE_LIMITS = (2, 64)
PORT_LIMITS = (0, 65535)
IFNAMSIZ = 16
THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
"""No address of it is a machine's (RFC 1122, 3.2.1.3)."""
PROVISIONED = ("soft_roce", "mtu", "flow_control", "traffic_class", "settings")

Mtu = NewType("Mtu", int)
MemoryMib = NewType("MemoryMib", int)
NodeCount = NewType("NodeCount", int)
TcpPort = NewType("TcpPort", int)
Ipv4Prefix = NewType("Ipv4Prefix", int)
Ipv6Prefix = NewType("Ipv6Prefix", int)
AnyMtu = NewType("AnyMtu", int)
Priority = NewType("Priority", int)
TrafficClass = NewType("TrafficClass", int)
Ipv4 = NewType("Ipv4", str)
Ipv6 = NewType("Ipv6", str)
Name = NewType("Name", str)
"""What a kernel calls a device, and what a lab calls a node: no blank, no slash, not empty."""
NetdevName = NewType("NetdevName", str)
"""A name that a kernel can give to a netdev."""
Namespace = NewType("Namespace", str)
"""A name, or empty: none."""
Host = NewType("Host", str)
"""What ssh calls a host: not empty."""
KernelSource = NewType("KernelSource", str)
"""SUITE/PACKAGE, or the path of a tree."""
KERNEL_PACKAGE = re.compile(r"[a-z]+(-[a-z]+)*/linux-source(-\d+\.\d+)?")
Suite = Literal["trixie", "bookworm"]


@attrs.frozen
class LabSection:
    """``[lab]``: the lab's name, and what kind of lab it is."""

    name: Name = Name("soft-pair")
    kind: Literal["soft-pair", "soft-bridge", "hosts"] = "soft-pair"


@attrs.frozen
class Guest:
    """``[guest]``: what the nodes of a soft lab run. ``memory_mib`` is of each node.

    ``kind``: ``clone`` is QEMU's, made from a snapshot, on the suite's own kernel; ``uml`` is a User-Mode Linux process
    on a ``kernel`` built for it. Each of ``kernel`` is SUITE/PACKAGE with Debian's kernel source, or the path of a
    kernel tree, relative to the lab file's folder; the first that can be had is taken. ``accelerator`` is for clones.
    """

    kind: Literal["clone", "uml"] = "clone"
    suite: Suite = "trixie"
    memory_mib: MemoryMib = MemoryMib(640)
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    kernel: tuple[KernelSource, ...] = (
        KernelSource("trixie-backports/linux-source-7.2"),
        KernelSource("trixie-backports/linux-source"),
    )


@attrs.frozen
class Link:
    """``[link]``: what joins the adapters. ``mtu`` in bytes; IPv6 needs 1280."""

    mtu: Mtu = Mtu(1500)


@attrs.frozen
class SoftPairFile:
    """Two guests and the inline wire; every section and key has a default. ``guest_b`` is node b's, if it differs."""

    lab: LabSection = LabSection()
    guest: Guest = Guest()
    guest_b: Guest | None = None
    link: Link = Link()


@attrs.frozen
class BridgeSection:
    """``[bridge]``: how many guests are joined by it."""

    nodes: NodeCount = NodeCount(16)


@attrs.frozen
class SoftBridgeFile:
    """Many guests on one bridge, which records every frame; nodes are called n1, n2 and so on."""

    lab: LabSection
    guest: Guest = Guest()
    bridge: BridgeSection = BridgeSection()
    link: Link = Link()


@attrs.frozen
class Adapter:
    """``[nodes.NAME.adapter]``: the RDMA device, the netdev below it, and the addresses that it has.

    ``device`` is its name, or what ``hil adapters`` finds it by: a netdev, PCI address, GUID or IP address.

    ``provision``: give it what it lacks of these for the run, and take it away again: addresses with their prefix
    lengths, ``mtu`` unless 0, link up, and with ``soft_roce`` a soft-RoCE device of that name on the netdev. Only
    where they are written: ``flow_control``, the priorities that have PFC and no others; ``traffic_class`` of
    connections that choose none, its two lowest bits ECN's; ``settings``, files below /sys/class/net and /proc/sys/net,
    such as a driver's ECN switches, and what to write into them.
    """

    device: Name
    netdev: NetdevName
    ipv4: Ipv4
    ipv6: Ipv6 = Ipv6("")
    provision: bool = False
    soft_roce: bool = False
    ipv4_prefix: Ipv4Prefix = Ipv4Prefix(24)
    ipv6_prefix: Ipv6Prefix = Ipv6Prefix(64)
    mtu: AnyMtu = AnyMtu(0)
    flow_control: tuple[Priority, ...] | None = None
    traffic_class: TrafficClass | None = None
    settings: dict[str, str] | None = None


@attrs.frozen
class SshNode:
    """``[nodes.NAME]`` of ``kind = "ssh"``: a host as the user's own ssh reaches it.

    ``host`` is a name or an alias of the ssh configuration; ``port`` 0 and empty strings leave it to that.
    ``config``, ``identity`` and ``known_hosts`` are paths, relative to the lab file's folder.
    ``sudo``: become root with ``sudo -n``. ``namespace``: run in this network namespace; with ``make_namespace`` it is
    made where it is not there, and the adapter's netdev is moved into it, for the run.
    """

    kind: Literal["ssh"]
    host: Host
    user: str = ""
    port: TcpPort = TcpPort(0)
    config: str = ""
    identity: str = ""
    known_hosts: str = ""
    python: str = "python3"
    sudo: bool = False
    namespace: Namespace = Namespace("")
    make_namespace: bool = False
    adapter: Adapter | None = None


@attrs.frozen
class LocalNode:
    """``[nodes.NAME]`` of ``kind = "local"``: this machine. The keys are those of an SSH node."""

    kind: Literal["local"]
    python: str = "python3"
    sudo: bool = False
    namespace: Namespace = Namespace("")
    make_namespace: bool = False
    adapter: Adapter | None = None


NodeSection = SshNode | LocalNode


@attrs.frozen
class Cable:
    """``[link]`` between hosts. ``kind``: what is between the adapters, ``internal`` when both are in one host.

    ``soft``: the adapters are soft-RoCE, so that netdevs see their frames. ``cabling`` is for people, and stands in
    every result.
    """

    kind: Literal["cable", "switch", "internal"] = "cable"
    soft: bool = False
    cabling: str = ""


@attrs.frozen
class NoCapture:
    """``[capture]`` of ``kind = "none"``: nothing is recorded, so nothing about the wire can be judged."""

    kind: Literal["none"]


@attrs.frozen
class HostCapture:
    """``[capture]`` of ``kind = "host"``: on node a's or b's own netdev.

    ``method``: ``packet-socket`` is the bench's own, the others are programs that the node must have.
    ``interface``: what to record on when it is not the adapter's netdev, as dumpcap calls it.
    """

    kind: Literal["host"]
    on: Literal["a", "b"] = "a"
    method: Literal["packet-socket", "dumpcap", "tcpdump"] = "packet-socket"
    interface: str = ""


@attrs.frozen
class MirrorCapture:
    """``[capture]`` of ``kind = "mirror"``: on a third node, whose ``netdev`` the switch mirrors the link to."""

    kind: Literal["mirror"]
    node: Name
    netdev: Name
    method: Literal["packet-socket", "dumpcap", "tcpdump"] = "packet-socket"


CaptureSection = NoCapture | HostCapture | MirrorCapture


@attrs.frozen
class HostsFile:
    """Machines that exist without the bench: nodes a and b with an adapter each, and whoever captures."""

    lab: LabSection
    nodes: dict[Name, NodeSection]
    capture: CaptureSection
    link: Cable = Cable()


LabFile = SoftPairFile | SoftBridgeFile | HostsFile
FILES: dict[str, type] = {"soft-pair": SoftPairFile, "soft-bridge": SoftBridgeFile, "hosts": HostsFile}


def _strict(kind: type) -> Any:
    names = {int: "an integer", str: "a string", bool: "true or false"}

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{value!r} is not {names[kind]}")
        if isinstance(value, str) and not value.isprintable():
            raise ValueError(f"{value!r} holds what cannot be printed")
        return value

    return structure


def _between(low: int, high: int) -> Any:
    def structure(value: Any, of: type) -> Any:
        number = _strict(int)(value, of)
        if not low <= number <= high:
            raise ValueError(f"{number} is out of range: {low} to {high}")
        return number

    return structure


def _any_mtu(value: Any, of: type) -> int:
    """An MTU, or 0 to leave it as it is."""
    number: int = _strict(int)(value, of)
    if number and not MTU_LIMITS[0] <= number <= MTU_LIMITS[1]:
        low, high = MTU_LIMITS
        raise ValueError(f"{number} is out of range: 0, or {low} to {high}; IPv6 loses its addresses below {low}")
    return number


def _address(version: int, *, optional: bool) -> Any:
    def structure(value: Any, of: type) -> Any:
        text = _strict(str)(value, of)
        if optional and not text:
            return text
        try:
            known = ipaddress.ip_address(text)
        except ValueError:
            known = None
        if known is None or known.version != version:
            raise ValueError(f"{text!r} is not an IPv{version} address; write it without a prefix length")
        if why := _unusable(known):
            raise ValueError(f"{text!r} is no adapter's address: {why}")
        # As the kernel and the packets write it: it is compared as text.
        return str(known)

    return structure


def _unusable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Why a connection cannot be made to an address, or an empty text."""
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return "it names a scope"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return "it is an IPv4 address in disguise"
    kinds = {"multicast": address.is_multicast, "unspecified": address.is_unspecified, "loopback": address.is_loopback}
    if isinstance(address, ipaddress.IPv4Address):
        kinds |= {"everybody's": str(address) == "255.255.255.255", "this network's own": address in THIS_NETWORK}
    kinds["link-local, and names no scope"] = isinstance(address, ipaddress.IPv6Address) and address.is_link_local
    return ", ".join(f"it is {kind}" for kind, so in kinds.items() if so)


def _name(value: Any, of: Any) -> str:
    text: str = _strict(str)(value, of)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}", text):
        raise ValueError(f"{text!r} is not a name: letters, digits, and any of _ . : @ -")
    return text


def _netdev_name(value: Any, of: Any) -> str:
    text = _name(value, of)
    # dev_valid_name() of the kernel; IFNAMSIZ counts the NUL.
    if ":" in text or len(text) >= IFNAMSIZ:
        raise ValueError(f"{text!r} is no netdev's name: at most {IFNAMSIZ - 1} characters, and no colon")
    return text


def _name_or_none(value: Any, of: Any) -> str:
    return "" if value == "" else _name(value, of)


def _host(value: Any, of: Any) -> str:
    text: str = _strict(str)(value, of)
    if not text.strip():
        raise ValueError(f"{text!r} names no host")
    return text


def _kernel_source(value: Any, of: Any) -> str:
    text: str = _strict(str)(value, of)
    if "/" not in text or not text.strip():
        raise ValueError(
            f"{text!r} is no kernel source: SUITE/PACKAGE, or the path of a kernel tree with a slash in it"
        )
    return text


def _kernel_sources(value: Any, _: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r} is not a list of kernel sources with one at least")
    return tuple(_kernel_source(source, KernelSource) for source in value)


def _choice(value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, get_args(choices)))}")
    return value


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _by_kind(converter: cattrs.Converter, *classes: type) -> Any:
    """A table that is of one of these classes, as its key ``kind`` says."""
    known = {get_args(attrs.fields_dict(cls)["kind"].type)[0]: cls for cls in classes}

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is not a table")
        if (kind := value.get("kind")) in list(known):
            return converter.structure(value, known[kind])
        mistake = ValueError(f"kind is {kind!r}; it must be one of {', '.join(known)}")
        # By its keys it will be this: what else is wrong with it is told as well.
        likely = max(known, key=lambda name: len(value.keys() & attrs.fields_dict(known[name]).keys()))
        try:
            converter.structure(value | {"kind": likely}, known[likely])
        except ClassValidationError as error:
            raise ClassValidationError(str(error), [mistake, *error.exceptions], known[likely]) from error
        raise mistake

    return structure


def _converter(*, strict: bool = True) -> cattrs.Converter:
    """``strict``: unknown keys are refused."""
    converter = cattrs.Converter(forbid_extra_keys=strict)
    converter.register_structure_hook_func(_is_literal, _choice)
    for kind in (int, str, bool):
        converter.register_structure_hook(kind, _strict(kind))
    limits = {Mtu: MTU_LIMITS, MemoryMib: MEMORY_LIMITS, NodeCount: NODE_LIMITS, TcpPort: PORT_LIMITS}
    limits |= {Ipv4Prefix: (1, 32), Ipv6Prefix: (1, 128), Priority: (0, 7), TrafficClass: (0, 255)}
    for number, bounds in limits.items():
        converter.register_structure_hook(number, _between(*bounds))
    converter.register_structure_hook(AnyMtu, _any_mtu)
    converter.register_structure_hook(Ipv4, _address(4, optional=False))
    converter.register_structure_hook(Ipv6, _address(6, optional=True))
    converter.register_structure_hook(Name, _name)
    converter.register_structure_hook(NetdevName, _netdev_name)
    converter.register_structure_hook(Namespace, _name_or_none)
    converter.register_structure_hook(Host, _host)
    converter.register_structure_hook(KernelSource, _kernel_source)
    converter.register_structure_hook_func(lambda kind: kind == tuple[KernelSource, ...], _kernel_sources)
    for union in (NodeSection, CaptureSection):
        hook = _by_kind(converter, *get_args(union))
        converter.register_structure_hook_func(lambda kind, union=union: kind == union, hook)  # type: ignore[misc]

    def factory(cls: type) -> Any:
        structure: Any = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=strict)

        def checked(value: Any, of: type) -> Any:
            if not isinstance(value, dict):
                raise ValueError(f"{value!r} is not a table")
            return structure(value, of)

        return checked

    converter.register_structure_hook_factory(attrs.has, factory)
    return converter


def read_lab_file(path: Path) -> LabFile:
    """The lab file at ``path``. Raises LabFileError that lists every mistake with its place."""
    values = _read(path)
    section = values.get("lab")
    kind = section.get("kind", "soft-pair") if isinstance(section, dict) else "soft-pair"
    mistakes: list[str] = []
    if "nodes" in values and (section is None or (isinstance(section, dict) and "kind" not in section)):
        kind = "hosts"
        mistakes = ["[lab.kind] it is missing: a lab with nodes is of kind hosts"]
        values["lab"] = section or {}
    if str(kind) not in FILES:
        # What the other sections should hold nobody knows.
        values = {"lab": section}
    cls = FILES.get(str(kind), SoftPairFile)
    try:
        lab: LabFile = _converter().structure(values, cls)
    except Exception as error:
        mistakes += [_place(text) for text in transform_error(error, format_exception=_described)]
        # What is right can contradict itself as well.
        if (rest := _right_part(values, cls)) is not None:
            mistakes += _contradictions(rest, values)
        raise LabFileError(_listed(path, mistakes)) from error
    if mistakes := [*mistakes, *_contradictions(lab, values)]:
        raise LabFileError(_listed(path, mistakes))
    return _placed(lab, path.absolute().parent)


def _placed(lab: LabFile, folder: Path) -> LabFile:
    """The lab with its kernel trees' paths made absolute: they are relative to the lab file's folder."""
    if isinstance(lab, HostsFile):
        return lab

    def guest(one: Guest) -> Guest:
        kernel = (source if KERNEL_PACKAGE.fullmatch(source) else str(folder / source) for source in one.kernel)
        return attrs.evolve(one, kernel=tuple(map(KernelSource, kernel)))

    placed = attrs.evolve(lab, guest=guest(lab.guest))
    if isinstance(placed, SoftPairFile) and placed.guest_b is not None:
        placed = attrs.evolve(placed, guest_b=guest(placed.guest_b))
    return placed


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            # A device may have no end, and a pipe no beginning.
            raise LabFileError(f"{path}: it is no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_LAB_FILE + 1)
        if len(data) > MAX_LAB_FILE:
            raise LabFileError(f"{path}: more than {MAX_LAB_FILE} bytes are too many for a lab file")
        return tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise LabFileError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LabFileError(f"{path}: not TOML: {harmless(str(error))}") from error


def _right_part(values: dict[str, Any], cls: type) -> LabFile | None:
    """The file without what is wrong in it, or None where nothing of it is right."""
    try:
        values = copy.deepcopy(values)
    except RecursionError:
        # A lab has no use for values so deep.
        return None
    converter = _converter(strict=False)
    while True:
        try:
            lab: LabFile = converter.structure(values, cls)
            return lab
        except Exception as error:
            places = [_keys(text) for text in transform_error(error, format_exception=_described)]
        if not any([_drop(values, keys) for keys in places]):
            return None


def _keys(text: str) -> list[str]:
    """The keys that lead to a mistake; an item of a list is its list."""
    where = text.rpartition(" @ $")[2].partition("[0")[0]
    return [quoted or plain for quoted, plain in re.findall(r"\['([^']*)'\]|\.([A-Za-z0-9_-]+)", where)]


def _drop(values: dict[str, Any], keys: list[str]) -> bool:
    """Leave out what ``keys`` lead to, or the table that lacks it; whether anything was left out."""
    for depth in range(len(keys), 0, -1):
        table: Any = values
        for key in keys[: depth - 1]:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and keys[depth - 1] in table:
            del table[keys[depth - 1]]
            return True
    # Without its section there is no capture that could contradict anything.
    if keys == ["capture"]:
        values["capture"] = {"kind": "none"}
        return True
    return False


def _contradictions(lab: LabFile, values: dict[str, Any]) -> Any:
    """What is wrong between sections that are good by themselves; ``values`` is the whole file."""
    if not isinstance(lab, HostsFile):
        return
    for name in ("a", "b"):
        node = lab.nodes.get(Name(name))
        written = _table(values, "nodes", name)
        if node is None and written is None:
            yield f"[nodes] node {name} is missing: contract tests run between a and b"
        elif node is not None and node.adapter is None and "adapter" not in (written or {}):
            yield f"[nodes.{name}] the section adapter is missing: device, netdev and ipv4 of what is tested"
    if isinstance(lab.capture, MirrorCapture) and _table(values, "nodes", lab.capture.node) is None:
        yield f"[capture.node] there is no node {lab.capture.node!r}; known are {', '.join(values['nodes'])}"
    if isinstance(lab.capture, MirrorCapture) and lab.capture.node in ("a", "b") and not lab.link.soft:
        yield (
            f"[capture.node] node {lab.capture.node} is tested: RoCE frames of a hardware adapter pass its netdevs by; "
            "mirror the port to a third node"
        )
    yield from _no_recorder(lab)
    for name, node in lab.nodes.items():
        yield from _without_a_namespace(name, node, _table(values, "nodes", name) or {})
        yield from _not_settings(name, node)
        if node.adapter is not None:
            yield from _no_address(name, node.adapter, _table(values, "nodes", name, "adapter") or {})
        if node.adapter is not None and not node.adapter.provision:
            for key in PROVISIONED:
                if getattr(node.adapter, key) != attrs.fields_dict(Adapter)[key].default:
                    yield f"[nodes.{name}.adapter.{key}] it is the bench's to give only with provision = true"
            continue
        if node.adapter is not None and node.adapter.flow_control is not None and node.namespace:
            yield f"[nodes.{name}.adapter.flow_control] it is a setting of a port: ask for it without a namespace"
        inside = node.namespace and not node.make_namespace
        if inside and node.adapter is not None and node.adapter.traffic_class is not None:
            place = f"[nodes.{name}.adapter.traffic_class]"
            yield f"{place} a namespace has a /sys of its own, without configfs: set it outside, before the run"
    soft = [name for name, node in lab.nodes.items() if node.adapter is not None and node.adapter.soft_roce]
    if soft and not lab.link.soft and not isinstance(_table(values, "link", "soft"), str):
        yield f"[link.soft] it is false, and the adapter of node {soft[0]} is soft-RoCE: soft = true"
    known = [ip for node in lab.nodes.values() if (a := node.adapter) for ip in (a.ipv4, a.ipv6) if ip]
    for ip in sorted({ip for ip in known if known.count(ip) > 1}):
        yield f"[nodes] two adapters have the address {ip}"


def _not_settings(name: str, node: NodeSection) -> Iterator[str]:
    """Settings that no adapter has."""
    for path in (node.adapter.settings if node.adapter else None) or {}:
        if why := why_not_settable(path):
            yield f"[nodes.{name}.adapter.settings] {path!r} is no setting: {why}"


def _no_address(name: str, adapter: Adapter, written: dict[str, Any]) -> Iterator[str]:
    """IPv4 addresses that are their network's own, or everybody's in it; ``written`` is all that stands there."""
    if not adapter.provision and "ipv4_prefix" not in written:
        # The host knows its network, and the file does not say it.
        return
    network = ipaddress.ip_network(f"{adapter.ipv4}/{adapter.ipv4_prefix}", strict=False)
    ends = {str(network.network_address): "names the network", str(network.broadcast_address): "is everybody's in"}
    # Of two addresses each is a machine's (RFC 3021).
    if network.prefixlen < 31 and adapter.ipv4 in ends:
        yield f"[nodes.{name}.adapter.ipv4] {adapter.ipv4} {ends[adapter.ipv4]} {network}: it is no adapter's address"


def _no_recorder(lab: HostsFile) -> Iterator[str]:
    """What nothing can be recorded on."""
    capture = lab.capture
    if isinstance(capture, HostCapture) and capture.interface == "any":
        yield "[capture.interface] what is recorded on any holds no Ethernet frames: name one netdev or RDMA device"
    if isinstance(capture, MirrorCapture) and capture.method == "packet-socket":
        try:
            _netdev_name(capture.netdev, NetdevName)
        except ValueError as error:
            yield f"[capture.netdev] {error}"


def _without_a_namespace(name: str, node: NodeSection, written: dict[str, Any]) -> Iterator[str]:
    """Why the bench cannot make the namespace that a node is to be in; ``written`` is all that stands there."""
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


def _table(values: dict[str, Any], *keys: str) -> Any:
    """What stands at ``keys``, or None."""
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _listed(path: Path, mistakes: list[str]) -> str:
    # Keys and values are somebody's text: nothing of it is to move the cursor of a terminal.
    return f"{path}: " + f"\n{path}: ".join(map(harmless, mistakes))


def _described(error: BaseException, kind: type | None) -> str:
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = ", ".join(a.name for a in attrs.fields(error.cl))
        return f"unknown {', '.join(sorted(error.extra_fields))}; known are {known}"
    if isinstance(error, KeyError):
        return "it is missing"
    return str(error)


def _place(text: str) -> str:
    message, _, where = text.rpartition(" @ $")
    where = re.sub(r"\['([^']*)'\]", r".\1", where)
    return f"[{where.strip('.') or 'top level'}] {message}" if message else text
