"""Labs of machines that exist without the bench: their nodes last for a whole run, and are restored after it."""

import shlex
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import attrs

from hil.agent.protocol import Message
from hil.errors import HilError, NodeError, RemoteError, SetupError, Unsupported
from hil.evidence.resources import Resource
from hil.files import passing_folder
from hil.interrupts import undisturbed
from hil.labs.hosts.file import Adapter, HostsFile, NodeSection
from hil.labs.hosts.host import Host
from hil.labs.hosts.kinds import POWERS, HostCapturePoint, Scene, capture_kind
from hil.labs.node import Node, Record
from hil.labs.pair import Pair
from hil.labs.place import Place
from hil.labs.power import Power
from hil.labs.schema import Name, Namespace
from hil.progress import say

T = TypeVar("T")
PORT_ACTIVE = 4
INSIDE_TIMEOUT_S = 20.0


class HostLab:
    """The nodes of a lab of hosts, ready for pairs one after the other. Use as a context manager.

    Paths in the lab file are relative to the folder of ``file``; ssh's output is written to ``folder``. Raises
    SetupError when a host cannot be reached or is not ready.
    """

    def __init__(self, lab: HostsFile, file: Path, folder: Path) -> None:
        self.lab = lab
        self._file, self._folder = file.absolute(), folder
        self._record: Record | None = None
        self.nodes: dict[str, Host] = {}
        # The agent that provisions a node: the node itself, or an agent outside the namespace that is made.
        self._makers: dict[str, Host] = {}
        self._provisioned: set[str] = set()
        self._bench = uuid.uuid4().hex
        self._adapters: dict[str, Adapter] = {}
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name in lab.nodes:
                self._makers[name] = self._connect(name, outside(self._section(name)))
            wait_ready(self._makers.values())
            self._make_ready(lab.nodes)
        except BaseException:
            # Raise the original error. Print the changes that could not be undone.
            try:
                self.close()
            except SetupError as error:
                say(str(error))
            raise

    def _section(self, name: str) -> NodeSection:
        return self.lab.nodes[Name(name)]

    def _connect(self, name: str, section: NodeSection) -> Host:
        return Host(name, section, self._file.parent, self._folder / f"console-{name}", self._take)

    def _take(self, node: str, worker: int, event: Message) -> None:
        # Another thread may set it to None at any time.
        record = self._record
        if record is not None:
            record(node, worker, event)

    def _place(self, name: str) -> Place:
        adapter = self.adapter(name)
        facts = self.nodes[name].system(
            "inspect", device=adapter.device, netdev=adapter.netdev, addresses=addresses(adapter)
        )
        if problems := not_ready(adapter, facts, namespace=self._section(name).namespace):
            raise SetupError(f"node {name}: " + "; ".join(map(str, problems)))
        prefixes = adapter.ipv4_prefix, adapter.ipv6_prefix
        mac = facts["adapter"]["mac"]
        return Place(name, mac, adapter.ipv4, adapter.ipv6, adapter.netdev, adapter.device, *prefixes)

    def _make_ready(self, names: Collection[str]) -> None:
        """Provision adapters as the lab file asks. Each node records how to undo a change before it makes it."""
        for name in names:
            section, maker = self._section(name), self._makers[name]
            if section.adapter is not None:
                adapter = self._adapters[name] = resolved(maker, section.adapter)
                if wanted := provisioning(adapter, section.namespace if section.make_namespace else ""):
                    self._provisioned.add(name)
                    maker.system("provision", bench=self._bench, wait=not section.make_namespace, **wanted)
            self.nodes[name] = self._connect(name, section) if section.make_namespace else maker
        wait_ready([self.nodes[name] for name in names])
        for name in names:
            if self.nodes[name] is not self._makers[name]:
                adapter = self._adapters[name]
                facts = {"device": adapter.device, "addresses": addresses(adapter), "timeout_s": INSIDE_TIMEOUT_S}
                self.nodes[name].system("wait_ready", **facts)
        self.places = tuple(self._place(name) for name in ("a", "b"))

    def adapter(self, name: str) -> Adapter:
        """The adapter of node ``name``. Raises SetupError if the lab file names none."""
        if name not in self._adapters:
            raise SetupError(f"the lab file names no adapter of node {name}")
        return self._adapters[name]

    def pair(self, folder: Path, mutant: str = "", *, used: bool = False) -> "HostPair":
        """Make a pair for one test. A node whose connection was lost is connected again. Raises HilError."""
        if mutant:
            raise Unsupported(f"the lab has no inline wire, so the wire {mutant} cannot be used")
        for name, node in list(self.nodes.items()):
            maker = self._makers[name]
            if self._living(name) is not maker or not node.alive():
                # A rebooted host has lost its provisioning.
                node.stop()
                self._make_ready([name])
        return HostPair(self, folder)

    def _living(self, name: str) -> Host:
        """The agent that provisions node ``name``, connected again if it was lost. Raises HilError."""
        if not self._makers[name].alive():
            self._makers[name].stop()
            self._makers[name] = self._connect(name, outside(self._section(name)))
            self._makers[name].wait_ready()
        return self._makers[name]

    def power(self, name: str) -> Power:
        """Power control of node ``name``. Raises Unsupported if the lab file has none, and SetupError."""
        section = self._section(name).power
        if section is None:
            raise Unsupported(f"[nodes.{name}] has no section power, which names the commands that halt the host")
        return POWERS.load(section.kind).connect(section, name, self._file.parent)

    def record(self, record: Record | None) -> None:
        """Set the function that receives the workers' events from now on."""
        self._record = record

    def provenance(self) -> dict[str, Any]:
        """Facts about each node with an adapter. Raises NodeError."""
        return {
            name: self.nodes[name].system("provenance", device=adapter.device, netdev=adapter.netdev)
            for name, adapter in self._adapters.items()
        }

    def close(self) -> None:
        """Undo the provisioning, and end all connections.

        Only SIGKILL interrupts this. Raises SetupError that names each node which is not restored; such a node keeps
        the record of the remaining changes.
        """
        with undisturbed("the hosts are being restored; if this process is killed now, use hil lab restore"):
            self._give_back()

    def _give_back(self) -> None:
        left = []
        for name, node in self.nodes.items():
            if node is not self._makers[name]:
                # The namespace can be removed only after the processes in it have ended.
                node.stop()
        for name in sorted(self._provisioned):
            try:
                self._living(name).system("restore", bench=self._bench)
            except HilError as error:
                left.append(f"node {name} is not restored: {reason(name, error)}")
        self._provisioned.clear()
        for node in {*self.nodes.values(), *self._makers.values()}:
            node.stop()
        if left:
            mend = f"undo the rest with: hil lab restore {shlex.quote(str(self._file))}"
            raise SetupError("\n".join([*left, mend]))

    def __enter__(self) -> "HostLab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_ready(hosts: Collection[Host]) -> None:
    """Wait until all hosts answer, then check that each is still alive. Raises HilError."""
    for host in hosts:
        host.wait_ready()
    for host in hosts:
        host.check_alive()


@contextmanager
def connected(lab: HostsFile, base: Path, folder: Path) -> Iterator[dict[str, Host]]:
    """Agents on all hosts of a lab. Adapters may be in any state. The agents run outside of namespaces that are made
    for a run. Raises HilError."""
    nodes: dict[str, Host] = {}
    try:
        for name, section in lab.nodes.items():
            console = folder / f"console-{name}"
            nodes[name] = Host(name, outside(section), base, console, lambda node, worker, event: None)
        wait_ready(nodes.values())
        yield nodes
    finally:
        for host in nodes.values():
            host.stop()


def on_each(lab: HostsFile, base: Path, work: Callable[[Host], T]) -> tuple[dict[str, T], dict[str, str]]:
    """Call ``work`` for each host of a lab. Returns its results, and an error message for each host that failed."""
    found: dict[str, T] = {}
    failed: dict[str, str] = {}
    with passing_folder("hil-") as folder:
        for name in lab.nodes:
            try:
                with connected(attrs.evolve(lab, nodes={name: lab.nodes[name]}), base, folder) as nodes:
                    found[name] = work(nodes[name])
            except (HilError, OSError) as error:
                failed[name] = reason(name, error)
    return found, failed


def reason(name: str, error: Exception) -> str:
    """The error message without the name of the node. A refusal by the bench's own code has no traceback."""
    if isinstance(error, RemoteError) and error.kind in ("AdapterError", "AtWork", "NotReady"):
        return error.message
    return str(error).removeprefix(f"node {name}: ")


def outside(section: NodeSection) -> NodeSection:
    """The node outside of the namespace that is made for it. A node in an existing namespace is unchanged."""
    return attrs.evolve(section, namespace=Namespace("")) if section.make_namespace else section


def provisioning(adapter: Adapter, namespace: str = "") -> dict[str, Any]:
    """The arguments of ``hil.adapters.provision`` for an adapter; empty if the lab file does not ask to provision it.

    ``namespace``: the namespace that its netdev is moved to.
    """
    if not adapter.provision:
        return {}
    lengths = ((adapter.ipv4, adapter.ipv4_prefix), (adapter.ipv6, adapter.ipv6_prefix))
    wanted: dict[str, Any] = {"netdev": adapter.netdev, "mtu": adapter.mtu}
    wanted["addresses"] = [f"{ip}/{length}" for ip, length in lengths if ip]
    if adapter.flow_control is not None:
        wanted["flow_control"] = list(adapter.flow_control)
    wanted |= {key: value for key in ("traffic_class", "settings") if (value := getattr(adapter, key)) is not None}
    wanted |= {"netns": namespace} if namespace else {}
    return wanted | ({"device": adapter.device} if adapter.soft_roce else {})


def resolved(host: Host, adapter: Adapter) -> Adapter:
    """The adapter with its RDMA device's own name, if the lab file has a netdev, PCI address, GUID or address instead.

    The adapter is unchanged if no device matches, or if the device will be made. Raises NodeError.
    """
    if adapter.soft_roce:
        return adapter
    device = host.system("device_of", wanted=adapter.device)
    return attrs.evolve(adapter, device=Name(device)) if device else adapter


def addresses(adapter: Adapter) -> list[str]:
    """The addresses that an adapter must have."""
    return [ip for ip in (adapter.ipv4, adapter.ipv6) if ip]


@dataclass(frozen=True, slots=True)
class Want:
    """A thing that a node lacks (``seen``), and the command that repairs it, if there is one."""

    seen: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.seen}: {self.mend}" if self.mend else self.seen


def not_ready(adapter: Adapter, facts: dict[str, Any], *, provisioned: bool = True, namespace: str = "") -> list[Want]:
    """Why a node cannot run a provider on its adapter. ``facts`` are its answer to ``inspect``.

    ``provisioned``: the adapter must be provisioned already; else it need only be possible to provision it.
    ``namespace``: where the node's commands run.
    """
    found = []
    if tuple(facts["python"]) < (3, 11):
        version = ".".join(map(str, facts["python"]))
        found.append(Want(f"Python {version} is too old", "install python3.11 or newer"))
    if facts["pyverbs"] != "there":
        found.append(Want(f"pyverbs is missing ({facts['pyverbs']})", "apt-get install python3-pyverbs"))
    if facts["librdmacm"] != "there":
        found.append(Want("librdmacm is missing", "apt-get install rdmacm-utils"))
    if isinstance(facts["rdma netlink"], str):
        mend = "modprobe rdma_rxe" if adapter.soft_roce else "load the adapter's own module, such as modprobe mlx5_ib"
        return [*found, Want(f"its kernel has no RDMA ({facts['rdma netlink']})", mend)]
    if not facts["rdma_cm"]:
        mend = "modprobe rdma_ucm, and log in as root or set sudo = true"
        found.append(Want("/dev/infiniband/rdma_cm cannot be opened", mend))
    missing = {"CAP_NET_ADMIN", "CAP_NET_RAW"} - set(facts["capabilities"])
    if missing:
        found.append(Want(f"{' and '.join(sorted(missing))} is missing", "log in as root, or set sudo = true"))
    if facts["kernel log"] != "there":
        mend = "log in as root, or set sudo = true; a container must be given /dev/kmsg"
        found.append(Want(f"the kernel's messages cannot be read ({facts['kernel log']})", mend))
    if adapter.provision and not provisioned:
        return found + _cannot_be_made(adapter, facts)
    return found + _adapter_not_ready(adapter, facts, f"ip netns exec {namespace} " if namespace else "")


def _cannot_be_made(adapter: Adapter, facts: dict[str, Any]) -> list[Want]:
    """Why provisioning cannot configure an adapter as the lab file asks."""
    devices: list[str] = facts["rdma netlink"]
    found = []
    if adapter.netdev not in facts["netdevs"]:
        found.append(Want(f"there is no netdev {adapter.netdev} (there is: {', '.join(facts['netdevs'])})"))
    if adapter.device not in devices and not adapter.soft_roce:
        mend = "name one of them, or set soft_roce = true to have it made"
        found.append(Want(_no_device(adapter, devices), mend))
    if adapter.device not in devices and adapter.soft_roce and not facts["soft-roce"]:
        found.append(Want("its kernel has no soft-RoCE", "install the kernel's module rdma_rxe"))
    return found


def _no_device(adapter: Adapter, devices: list[str]) -> str:
    return f"there is no RDMA device {adapter.device} (there is: {', '.join(devices) or 'none'})"


def _adapter_not_ready(adapter: Adapter, facts: dict[str, Any], there: str) -> list[Want]:
    """Why an adapter cannot be used. ``there``: the prefix that runs a command in the adapter's namespace."""
    known, devices = facts["adapter"], facts["rdma netlink"]
    if adapter.netdev not in facts["netdevs"]:
        return [Want(f"there is no netdev {adapter.netdev} (there is: {', '.join(facts['netdevs'])})")]
    if adapter.device not in devices:
        # A soft-RoCE device of this name would make the tests run on soft-RoCE where a NIC is meant.
        made = f"{there}rdma link add {adapter.device} type rxe netdev {adapter.netdev}"
        mend = f"name one that is there, load the NIC's module, or only where soft-RoCE is meant: {made}"
        return [Want(_no_device(adapter, devices), mend)]
    if error := known.get("error"):
        return [Want(f"{adapter.device} could not be asked: {error}")]
    if known["link layer"] == "InfiniBand":
        seen = f"port {known['port']} of {adapter.device} is an InfiniBand port, and the bench knows RoCE only"
        return [Want(seen, "make it an Ethernet port, where the adapter can be both (LINK_TYPE of its firmware)")]
    # A VLAN's netdev is on top of the port's own.
    if known["carries"] and not {adapter.netdev, *known["lower"]} & set(known["carries"]):
        seen = f"{adapter.netdev} is no netdev of {adapter.device}, which has {', '.join(known['carries'])}"
        return [Want(seen, "name the netdev that belongs to the device: hil adapters shows both")]
    found = []
    if known["state"] != PORT_ACTIVE:
        seen = f"{adapter.device} port {known['port']} is not ACTIVE but {known['state']}"
        found.append(Want(seen, f"{there}ip link set {adapter.netdev} up"))
    lengths = {adapter.ipv4: adapter.ipv4_prefix, adapter.ipv6: adapter.ipv6_prefix}
    for address in known["missing gids"]:
        mend = f"{there}ip address add {address}/{lengths[address]} dev {adapter.netdev}"
        found.append(Want(f"{adapter.device} has no GID for {address}", mend))
    for address in known["not served"]:
        seen = f"{address} is neither on the netdev of {adapter.device} nor on a VLAN of it, and no other can be tested"
        found.append(Want(seen, f"name an address of {' or '.join(known['carries']) or 'an Ethernet port'}"))
    return found


class HostPair(Pair):
    """Nodes a and b of a lab of hosts, for one test. Every worker ends with the pair; the nodes stay."""

    def __init__(self, lab: HostLab, folder: Path) -> None:
        a, b = lab.places
        super().__init__(folder, (a, b))
        self._lab = lab
        self._powers: dict[str, Power] = {}
        self.nodes = {"a": lab.nodes["a"], "b": lab.nodes["b"]}
        try:
            lab.record(self._record)
            self.wire = self.capture = self._capture()
            self._open.append(self.wire)
            self._begin()
        except BaseException:
            self.close()
            raise

    def all_nodes(self) -> Mapping[str, Node]:
        return self._lab.nodes

    def power(self, name: str) -> Power:
        """Power control as in the lab file. ``close`` restores the power of a node that a test leaves without."""
        self._powers.setdefault(name, self._lab.power(name))
        return self._powers[name]

    def _capture(self) -> HostCapturePoint:
        lab = self._lab.lab
        scene = Scene(self._lab.nodes, self.places, lab.link.soft, self.folder / "wire.pcapng")
        return capture_kind(lab).open(lab.capture, scene)

    def _conclude(self) -> None:
        if self.capture.tells_at_end:
            self.capture.stop()

    def resources(self, name: str, *, contexts: bool = False) -> list[Resource]:
        """The kernel's resources on the tested adapter. Other users may use the host's other adapters."""
        device = self.place(name).device
        return [found for found in super().resources(name, contexts=contexts) if found.device == device]

    def close(self) -> None:
        """Restore the power of nodes, stop the capture, and end every worker on the nodes that are alive."""
        powers, self._powers = self._powers, {}
        try:
            for power in powers.values():
                power.resume()
        finally:
            self._close()

    def _close(self) -> None:
        super().close()
        self._lab.record(None)
        for node in self._lab.nodes.values():
            if node.alive():
                try:
                    node.end_workers()
                except NodeError:
                    # The node died just now. The next pair connects to it again.
                    pass
