"""Lab files are typed; every mistake is reported at once, with its place."""

import os
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from hil.errors import LabFileError, Unsupported
from hil.labs.file import read_lab_file
from hil.labs.hosts.file import HostsFile
from hil.labs.hosts.lab import provisioning
from hil.labs.kinds import kind_of
from hil.labs.needs import Need
from hil.labs.place import Place
from hil.labs.schema import LabFile, Name
from hil.labs.soft.file import SoftPairFile


def lacks(lab: LabFile) -> Mapping[Need, str]:
    found: Mapping[Need, str] = kind_of(lab).lacks(lab)
    return found


def guarantee(lab: LabFile) -> str:
    return str(kind_of(lab).guarantee(lab))


def doubts(lab: LabFile) -> list[str]:
    return list(kind_of(lab).doubts(lab))


LABS = sorted((Path(__file__).parents[2] / "lab").glob("*.toml"))


@pytest.mark.parametrize("path", LABS, ids=lambda p: p.name)
def test_every_example_is_good(path: Path) -> None:
    """The lab files we ship can be read."""
    assert read_lab_file(path).lab.name == path.stem


def test_an_empty_file_is_the_default_lab(tmp_path: Path) -> None:
    """Every key has a default."""
    (tmp_path / "lab.toml").write_text("")
    assert read_lab_file(tmp_path / "lab.toml") == SoftPairFile()


def test_all_mistakes_are_reported_at_once_each_with_its_place(tmp_path: Path) -> None:
    """Wrong types, unknown keys, unknown choices, numbers out of range: one message names them all."""
    path = tmp_path / "lab.toml"
    path.write_text('[lab]\nname=3\nfoo=1\n[guest]\nsuite="sid"\nmemory_mib=12\n[link]\nmtu=true\n[zzz]\n')
    with pytest.raises(LabFileError) as caught:
        read_lab_file(path)
    lines = str(caught.value).splitlines()
    assert lines == [
        f"{path}: [lab.name] 3 is not a string",
        f"{path}: [lab] unknown foo; known are name, kind",
        f"{path}: [guest.suite] 'sid' is not one of trixie, bookworm",
        f"{path}: [guest.memory_mib] 12 is out of range: 384 to 16384",
        f"{path}: [link.mtu] True is not an integer",
        f"{path}: [top level] unknown zzz; known are lab, guest, guest_b, link, provider",
    ]


@pytest.mark.parametrize("data", [b"[", b"\xff\xfe", b"lab = 3", b"[lab]\nname = [", b"[[lab]]", b"a=" + b"[" * 100000])
def test_foreign_bytes_are_a_lab_file_error(tmp_path: Path, data: bytes) -> None:
    """Any content of the file leads to a LabFileError that names the file."""
    (tmp_path / "lab.toml").write_bytes(data)
    with pytest.raises(LabFileError, match=r"lab\.toml"):
        read_lab_file(tmp_path / "lab.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error names a path that does not exist."""
    with pytest.raises(LabFileError, match="No such file"):
        read_lab_file(tmp_path / "none.toml")


NODE_KINDS = "ssh, local; a package can add a kind of node (entry points, group hil.nodes)"
HOSTS = """
[lab]
name = "two"
kind = "hosts"
[nodes.a]
kind = "ssh"
host = "one"
[nodes.a.adapter]
device = "rxe0"
netdev = "eth0"
ipv4 = "10.0.0.1"
[nodes.b]
kind = "ssh"
host = "two"
[nodes.b.adapter]
device = "rxe0"
netdev = "eth0"
ipv4 = "10.0.0.2"
[link]
soft = true
[capture]
kind = "host"
"""


def hosts(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = HOSTS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "lab.toml").write_text(text)
    return tmp_path / "lab.toml"


def mistakes_in(path: Path) -> list[str]:
    """The message of a lab file's error, without the file's name."""
    with pytest.raises(LabFileError) as caught:
        read_lab_file(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_five_mistakes_in_a_lab_of_hosts_are_reported_at_once(tmp_path: Path) -> None:
    """A wrong kind, an unknown key, a bad address, a missing key and a wrong type: each with its place."""
    path = hosts(
        tmp_path,
        ('kind = "ssh"', 'kind = "telnet"'),
        ('kind = "ssh"\nhost = "two"', 'kind = "ssh"\nsodo = true'),
        ('"10.0.0.2"', '"10.0.0.2/24"'),
        ('kind = "host"', 'kind = "mirror"\nnode = "m"'),
        ("soft = true", 'soft = "yes"'),
    )
    with pytest.raises(LabFileError) as caught:
        read_lab_file(path)
    assert sorted(str(caught.value).splitlines()) == sorted(
        f"{path}: {mistake}"
        for mistake in (
            f"[nodes.a] kind 'telnet' is not one of {NODE_KINDS}",
            "[nodes.b.adapter.ipv4] '10.0.0.2/24' is not an IPv4 address; write it without a prefix length",
            "[nodes.b.host] it is missing",
            "[nodes.b] unknown sodo; known are kind, python, sudo, namespace, make_namespace, adapter, power, host, "
            "user, port, config, identity, known_hosts",
            "[link.soft] 'yes' is not true or false",
            "[capture.netdev] it is missing",
        )
    )


def test_contradictions_between_good_sections_are_reported_at_once(tmp_path: Path) -> None:
    """No node b, no adapter of a, a mirror on an unknown node, an address twice."""
    path = hosts(tmp_path, ("[nodes.b]", "[nodes.c]"), ("[nodes.b.", "[nodes.c."), ('"10.0.0.2"', '"10.0.0.1"'))
    path.write_text(path.read_text().replace('kind = "host"', 'kind = "mirror"\nnode = "m"\nnetdev = "x"'))
    assert mistakes_in(path) == [
        "[nodes] node b is missing: contract tests run between a and b",
        "[capture.node] there is no node 'm'; known are a, c",
        "[nodes] two adapters have the address 10.0.0.1",
    ]


def test_unmet_needs_of_a_lab_have_reasons(tmp_path: Path) -> None:
    """A soft pair meets all needs. Foreign hosts have no inline wire, and must be restored after a run."""
    assert lacks(SoftPairFile()) == {}
    lab = read_lab_file(hosts(tmp_path))
    assert isinstance(lab, HostsFile)
    assert lacks(lab).keys() == {
        *(Need.INLINE_WIRE, Need.POWER, Need.GUESTS, Need.MANY_NODES, Need.OWN_NODES, Need.CLONES),
        Need.IPV6,
    }
    assert lacks(lab)[Need.OWN_NODES].startswith("hosts must be restored after a run")


def test_a_netdev_of_a_hardware_adapter_is_no_capture_point(tmp_path: Path) -> None:
    """Its RoCE frames bypass the netdev. A capture there would be empty, and could be mistaken for a teardown."""
    lab = read_lab_file(hosts(tmp_path, ("soft = true\n", "")))
    assert "mirror the port" in lacks(lab)[Need.CAPTURE]
    method = 'kind = "host"\nmethod = "dumpcap"\ninterface = "mlx5_0"'
    named = read_lab_file(hosts(tmp_path, ("soft = true\n", ""), ('kind = "host"', method)))
    assert Need.CAPTURE not in lacks(named)


@pytest.mark.parametrize(
    ("capture", "said"),
    [
        ('kind = "host"\nmethod = "dumpcap"\ninterface = "any"', r"\[capture.interface\] .* name one netdev"),
        ('kind = "mirror"\nnode = "a"\nnetdev = "averyveryverylong"', r"\[capture.netdev\] .* no netdev's name"),
    ],
)
def test_an_interface_that_cannot_be_recorded_on_is_refused(tmp_path: Path, capture: str, said: str) -> None:
    """The interface "any" gives no Ethernet frames, and a packet socket records on netdevs only."""
    with pytest.raises(LabFileError, match=said):
        read_lab_file(hosts(tmp_path, ('kind = "host"', capture)))


def test_nothing_recorded_means_nothing_judged(tmp_path: Path) -> None:
    """A lab without a capture point lacks the need, with the reason."""
    lab = read_lab_file(hosts(tmp_path, ('kind = "host"', 'kind = "none"')))
    assert lacks(lab)[Need.CAPTURE] == "[capture] kind is none"


@pytest.mark.parametrize("name", ["a/../../b", "a b", "-x", "a;b", ""])
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    """A name that is used in a command or a path has no characters with a special meaning there."""
    with pytest.raises(LabFileError, match="is not a name"):
        read_lab_file(hosts(tmp_path, ('"eth0"', f'"{name}"')))


@pytest.mark.parametrize("mtu", [1, 1279, 9001])
def test_an_mtu_that_ipv6_cannot_use_is_refused(tmp_path: Path, mtu: int) -> None:
    """Below 1280 bytes a kernel drops every IPv6 address of the netdev. 0 leaves the MTU unchanged."""
    with pytest.raises(LabFileError, match=rf"nodes\.a\.adapter\.mtu\] {mtu} is out of range: 0, or 1280 to 9000"):
        read_lab_file(hosts(tmp_path, ('device = "rxe0"', f'device = "rxe0"\nmtu = {mtu}')))
    assert read_lab_file(hosts(tmp_path, ('device = "rxe0"', 'device = "rxe0"\nmtu = 0')))


@pytest.mark.parametrize(
    ("family", "address", "why"),
    [
        ("ipv6", "fd00::1%eth0", "it names a scope"),
        ("ipv6", "::ffff:10.0.0.1", "it is an IPv4-mapped address"),
        ("ipv6", "ff02::1", "it is multicast"),
        ("ipv6", "::", "it is unspecified"),
        ("ipv4", "0.0.0.0", "it is unspecified"),
        ("ipv4", "224.0.0.1", "it is multicast"),
        ("ipv4", "127.0.0.1", "it is loopback"),
        ("ipv4", "0.1.2.3", "it is this network's own"),
        ("ipv4", "255.255.255.255", "it is broadcast"),
        ("ipv4", "", "is not an IPv4 address"),
    ],
)
def test_an_address_is_one_that_an_adapter_can_have(tmp_path: Path, family: str, address: str, why: str) -> None:
    """An address that no connection can be made to is refused with its reason."""
    change = ('ipv4 = "10.0.0.1"', f'ipv4 = "{address}"')
    if family == "ipv6":
        change = ('ipv4 = "10.0.0.1"', f'ipv4 = "10.0.0.1"\nipv6 = "{address}"')
    with pytest.raises(LabFileError, match=rf"\[nodes\.a\.adapter\.{family}\] .*{why}"):
        read_lab_file(hosts(tmp_path, change))


@pytest.mark.parametrize(
    ("address", "prefix", "why"),
    [
        ("10.0.0.0", "provision = true", "names the network 10.0.0.0/24"),
        ("10.0.0.255", "ipv4_prefix = 24", "is the broadcast address of 10.0.0.0/24"),
        ("10.0.0.255", "ipv4_prefix = 22", ""),
        ("10.0.0.0", "ipv4_prefix = 31", ""),
        ("10.0.1.0", "", ""),
        ("240.0.0.1", "", ""),
    ],
)
def test_an_address_is_a_machines_in_its_network(tmp_path: Path, address: str, prefix: str, why: str) -> None:
    """The first and the last address of a network belong to no machine, if the file gives the network."""
    path = hosts(tmp_path, ('ipv4 = "10.0.0.1"', f'ipv4 = "{address}"\n{prefix}'))
    if not why:
        read_lab_file(path)
        return
    with pytest.raises(LabFileError, match=rf"\[nodes\.a\.adapter\.ipv4\] {address} {why}"):
        read_lab_file(path)


@pytest.mark.parametrize(
    "path",
    [
        "/sys/class/net/e/device/infiniband/mlx5_0/tc/1/traffic_class",
        "/sys/class/net/e/ecn/roce_np/enable/0",
        "/proc/sys/net/ipv4/conf/e.100/arp_ignore",
    ],
)
def test_an_adapters_own_settings_may_be_asked_for(tmp_path: Path, path: str) -> None:
    """Settings in any of the driver's files are accepted."""
    asked = f'device = "rxe0"\nprovision = true\nsettings = {{"{path}" = "1"}}'
    read_lab_file(hosts(tmp_path, ('device = "rxe0"', asked)))


def test_an_address_is_kept_as_packets_show_it(tmp_path: Path) -> None:
    """Each spelling in the file leads to the same text that is read from the wire."""
    lab = read_lab_file(hosts(tmp_path, ('ipv4 = "10.0.0.1"', 'ipv4 = "10.0.0.1"\nipv6 = "FD00:0:0::1"')))
    assert isinstance(lab, HostsFile)
    adapter = next(node.adapter for name, node in lab.nodes.items() if name == "a")
    assert adapter is not None and adapter.ipv6 == "fd00::1"


def test_a_key_too_many_hides_no_contradiction(tmp_path: Path) -> None:
    """Both are reported at once."""
    path = hosts(tmp_path, ("soft = true", "soft = true\ncolour = 3"), ('"10.0.0.2"', '"10.0.0.1"'))
    with pytest.raises(LabFileError, match=r"(?s)unknown colour.*two adapters have the address 10\.0\.0\.1"):
        read_lab_file(path)


def test_an_unknown_kind_of_lab_is_the_only_mistake(tmp_path: Path) -> None:
    """The sections of such a file have no known schema, and are not checked as those of another kind."""
    path = hosts(tmp_path, ('kind = "hosts"', 'kind = "host"'))
    with pytest.raises(LabFileError) as caught:
        read_lab_file(path)
    known = "soft-pair, soft-bridge, hosts; a package can add a kind of lab (entry points, group hil.labs)"
    assert str(caught.value) == f"{path}: [lab.kind] 'host' is not one of {known}"


def test_a_mirror_of_hardware_is_on_a_third_node(tmp_path: Path) -> None:
    """RoCE frames of a hardware adapter bypass the netdevs of the tested node."""
    mirror = 'kind = "mirror"\nnode = "a"\nnetdev = "eth1"'
    with pytest.raises(LabFileError, match=r"\[capture\.node\] node a is tested"):
        read_lab_file(hosts(tmp_path, ('kind = "host"', mirror), ("soft = true\n", "")))
    assert read_lab_file(hosts(tmp_path, ('kind = "host"', mirror)))


@pytest.mark.parametrize("host", ['""', '" "', r'"a\u001b[2Jb"', r'"a\nb"'])
def test_a_host_has_a_name(tmp_path: Path, host: str) -> None:
    """An empty text, and one with control characters, is no host's name."""
    with pytest.raises(LabFileError, match=r"\[nodes\.a\.host\]"):
        read_lab_file(hosts(tmp_path, ('host = "one"', f"host = {host}")))


def test_no_mistake_moves_the_cursor(tmp_path: Path) -> None:
    """A terminal's escapes in keys and values are shown as text."""
    (tmp_path / "lab.toml").write_text('[link]\nmtu = "\\u001b[2J"\n"\\u001b[2J" = 1\n')
    with pytest.raises(LabFileError) as caught:
        read_lab_file(tmp_path / "lab.toml")
    assert "\x1b" not in str(caught.value) and str(caught.value).count("\n") == 1


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    """Reading a device may never end, and a pipe may have no writer."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(LabFileError, match="it is no regular file"):
            read_lab_file(path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LabFileError, match="too many for a lab file"):
        read_lab_file(tmp_path / "large")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Some editors begin a file with one."""
    (tmp_path / "lab.toml").write_bytes(b"\xef\xbb\xbf[lab]\nname = 'x'\n")
    assert read_lab_file(tmp_path / "lab.toml").lab.name == "x"


@pytest.mark.parametrize(
    ("address", "prefix", "taken", "unused"),
    [
        ("10.20.0.1", 24, [], "10.20.0.99"),
        ("10.20.0.200", 24, [], "10.20.0.42"),
        ("10.20.0.157", 24, [], "10.20.0.1"),
        ("10.20.0.1", 24, ["10.20.0.99"], "10.20.0.100"),
        ("10.20.0.1", 30, ["10.20.0.2"], ""),
        ("fd20::1", 64, [], "fd20::63"),
    ],
)
def test_an_unused_address_lies_in_the_network(address: str, prefix: int, taken: list[str], unused: str) -> None:
    """It is never outside of the network. If every address is taken, there is none."""
    ipv6 = ":" in address
    place = Place("a", "", address, address, ipv4_prefix=prefix, ipv6_prefix=prefix)
    if unused:
        assert place.unused_address(ipv6=ipv6, taken=taken) == unused
    else:
        with pytest.raises(Unsupported):
            place.unused_address(ipv6=ipv6, taken=taken)


def test_a_namespace_is_made_only_where_it_can_be(tmp_path: Path) -> None:
    """It needs a name, and a netdev that the bench may move. Settings of a netdev cannot be asked for inside of it."""
    changed = hosts(tmp_path, ('kind = "ssh"\nhost = "one"', 'kind = "ssh"\nhost = "one"\nmake_namespace = true'))
    with pytest.raises(LabFileError) as caught:
        read_lab_file(changed)
    where = f"{changed}: [nodes.a.make_namespace]"
    assert str(caught.value).splitlines() == [
        f"{where} namespace is missing: its name",
        f"{where} a netdev is moved only with an adapter that has provision = true",
    ]
    named = 'kind = "ssh"\nhost = "one"\nnamespace = "left"\nmake_namespace = true'
    asked = 'device = "rxe0"\nprovision = true\nsettings = {"/proc/sys/net/x" = "1"}'
    with pytest.raises(LabFileError, match="leave make_namespace out"):
        read_lab_file(hosts(tmp_path, ('kind = "ssh"\nhost = "one"', named), ('device = "rxe0"', asked)))


def test_settings_of_an_adapter_reach_provisioning(tmp_path: Path) -> None:
    """PFC, traffic class and settings are passed to provisioning as written, and only if they are written."""
    more = 'device = "rxe0"\nprovision = true\nflow_control = [3, 4]\ntraffic_class = 106\n'
    more += 'settings = {"/proc/sys/net/x" = "1"}'
    lab = read_lab_file(hosts(tmp_path, ('device = "rxe0"', more)))
    assert isinstance(lab, HostsFile)
    adapter = lab.nodes[Name("a")].adapter
    assert adapter is not None
    asked = provisioning(adapter)
    wanted = {"flow_control": [3, 4], "traffic_class": 106, "settings": {"/proc/sys/net/x": "1"}}
    assert {key: asked[key] for key in wanted} == wanted
    other = lab.nodes[Name("b")].adapter
    assert other is not None and not set(wanted) & set(provisioning(attrs.evolve(other, provision=True)))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("flow_control = [8]", "adapter.flow_control[0]] 8 is out of range: 0 to 7"),
        ('settings = {"/proc/sys/net/." = "1"}', "'/proc/sys/net/.' is no setting: it is not the plain path of a file"),
        ('settings = {"/sys/class/net/" = "1"}', "it is not the plain path of a file"),
        ('settings = {"/sys/class/net/e/device/remove" = "1"}', "device leads out of the adapter's own folder"),
        (
            'settings = {"/sys/class/net/e/device/infiniband/m/device/reset" = "1"}',
            "device leads out of the adapter's own folder",
        ),
        ('settings = {"/etc/passwd" = "1"}', "it is not below /sys/class/net/ or /proc/sys/net/"),
        ("traffic_class = 256", "adapter.traffic_class] 256 is out of range: 0 to 255"),
        ('settings = {"/proc/x" = 1}', "1 is not a string"),
        ("soft_roce = true", "adapter.soft_roce] the bench sets it only with provision = true"),
        ("mtu = 4200", "adapter.mtu] the bench sets it only with provision = true"),
        ("flow_control = []", "adapter.flow_control] the bench sets it only with provision = true"),
    ],
)
def test_settings_that_the_bench_cannot_make_are_refused(tmp_path: Path, key: str, said: str) -> None:
    """A value out of range, and a key that would be ignored because the lab file provisions nothing."""
    provision = "" if "only with" in said else "\nprovision = true"
    with pytest.raises(LabFileError) as raised:
        read_lab_file(hosts(tmp_path, ('device = "rxe0"', f'device = "rxe0"{provision}\n{key}')))
    assert said in str(raised.value)


def test_mistakes_and_contradictions_are_reported_together(tmp_path: Path) -> None:
    """A value out of range hides no address that is there twice, no key that would be ignored and no missing node."""
    path = hosts(
        tmp_path,
        ('ipv4 = "10.0.0.1"', 'ipv4 = "10.0.0.2"\nmtu = 100'),
        ('ipv4 = "10.0.0.2"\n[link]', 'ipv4 = "10.0.0.2"\nsoft_roce = true\n[link]'),
        ('kind = "host"\n', 'kind = "mirror"\nnode = "m"\nnetdev = "e"\n'),
    )
    with pytest.raises(LabFileError) as raised:
        read_lab_file(path)
    assert sorted(str(raised.value).splitlines()) == [
        f"{path}: {mistake}"
        for mistake in (
            "[capture.node] there is no node 'm'; known are a, b",
            "[nodes.a.adapter.mtu] 100 is out of range: 0, or 1280 to 9000; IPv6 loses its addresses below 1280",
            "[nodes.b.adapter.soft_roce] the bench sets it only with provision = true",
            "[nodes] two adapters have the address 10.0.0.2",
        )
    ]


@pytest.mark.parametrize("drop", ["[nodes.a]", "[capture]", "[nodes.b.adapter]", 'kind = "ssh"', 'device = "rxe0"'])
def test_a_section_that_is_wrong_is_not_missing_too(tmp_path: Path, drop: str) -> None:
    """A wrong or missing section is reported once, at its own place."""
    path = hosts(tmp_path, (drop, "" if "=" in drop or drop == "[capture]" else drop.replace("]", "]\nzzz = 1")))
    with pytest.raises(LabFileError) as raised:
        read_lab_file(path)
    lines = str(raised.value).splitlines()
    assert 1 <= len(lines) <= 2 and len(set(lines)) == len(lines), lines
    assert not any("is missing: contract" in line for line in lines), lines


@pytest.mark.parametrize("name", ["enp1s0f0np0.1000", "eth0:1"])
def test_a_netdevs_name_is_one_that_the_kernel_can_give(tmp_path: Path, name: str) -> None:
    """Sixteen characters are one too many, and an alias is none; a device's name may be longer."""
    with pytest.raises(LabFileError, match=r"\[nodes.a.adapter.netdev\] .* is no netdev's name: at most 15 characters"):
        read_lab_file(hosts(tmp_path, ('netdev = "eth0"', f'netdev = "{name}"')))
    read_lab_file(hosts(tmp_path, ('device = "rxe0"', 'device = "a-device-of-more-characters"')))


SAME = ('host = "two"', 'host = "one"')


@pytest.mark.parametrize(
    ("changes", "doubted"),
    [
        ([], False),
        ([SAME], True),
        ([SAME, ('host = "one"', 'host = "one"\nport = 2222')], False),
        ([SAME, ('host = "one"', 'host = "one"\nnamespace = "left"')], False),
        ([('kind = "ssh"\nhost = "one"', 'kind = "local"')], False),
        ([('kind = "ssh"\nhost = "one"', 'kind = "local"'), ('kind = "ssh"\nhost = "two"', 'kind = "local"')], True),
    ],
)
def test_one_machine_in_one_namespace_is_doubted(tmp_path: Path, changes: list[tuple[str, str]], doubted: bool) -> None:
    """A kernel does not send packets for its own addresses to an adapter. So two nodes need two machines or namespaces,
    unless the host has special routing."""
    assert bool(doubts(read_lab_file(hosts(tmp_path, *changes)))) == doubted


def test_a_missing_or_wrong_kind_hides_no_other_mistake(tmp_path: Path) -> None:
    """A file with nodes is checked as a lab of hosts, and a node as the kind that has most of its keys."""
    path = tmp_path / "lab.toml"
    path.write_text('[nodes.a]\nkind="ssh"\nhost="x"\n[nodes.b]\nkind="telnet"\nhost="y"\nuser=3\nport=99999999\n')
    assert mistakes_in(path) == [
        "[lab.kind] it is missing: a lab with nodes is of kind hosts",
        "[nodes.b.user] 3 is not a string",
        "[nodes.b.port] 99999999 is out of range: 0 to 65535",
        f"[nodes.b] kind 'telnet' is not one of {NODE_KINDS}",
        "[capture] it is missing",
        "[nodes.a] the section adapter is missing: device, netdev and ipv4 of the tested adapter",
    ]


def test_a_traffic_class_is_not_set_from_inside_a_namespace(tmp_path: Path) -> None:
    """An existing namespace has a /sys without configfs. For one that is made for the run, the class is set outside."""
    asked = ('device = "rxe0"', 'device = "rxe0"\nprovision = true\ntraffic_class = 106')
    with pytest.raises(LabFileError, match=r"\[nodes\.a\.adapter\.traffic_class\] a namespace has a /sys of its own"):
        read_lab_file(hosts(tmp_path, asked, ('host = "one"', 'host = "one"\nnamespace = "left"')))
    made = ('host = "one"', 'host = "one"\nnamespace = "left"\nmake_namespace = true')
    read_lab_file(hosts(tmp_path, asked, made))


def test_drops_that_libpcap_does_not_count_are_not_promised(tmp_path: Path) -> None:
    """libpcap counts no drops on an RDMA device, and counts them on a netdev."""
    hardware = ("soft = true\n", ""), ('kind = "host"', 'kind = "host"\nmethod = "dumpcap"\ninterface = "mlx5_0"')
    assert "counts no drops on an RDMA device" in guarantee(read_lab_file(hosts(tmp_path, *hardware)))
    assert "the recording's own drops are counted" in guarantee(read_lab_file(hosts(tmp_path)))


def test_a_kernel_tree_is_relative_to_the_lab_file(tmp_path: Path) -> None:
    """A package has a suite. A path is relative to the file's folder, for both guests."""
    path = tmp_path / "lab.toml"
    path.write_text(
        '[guest]\nkind = "uml"\nkernel = ["trixie/linux-source-6.12", "../linux"]\n'
        '[guest_b]\nkind = "uml"\nkernel = ["/src/linux"]\n'
    )
    lab = read_lab_file(path)
    assert isinstance(lab, SoftPairFile) and lab.guest_b is not None
    assert lab.guest.kernel == ("trixie/linux-source-6.12", f"{tmp_path}/../linux")
    assert lab.guest_b.kernel == ("/src/linux",)


def test_a_kernel_without_its_suite_is_refused(tmp_path: Path) -> None:
    """The message gives the form of a source, and the unknown kind of guest."""
    path = tmp_path / "lab.toml"
    path.write_text('[guest]\nkind = "xen"\nkernel = ["linux-source-7.2"]\n')
    with pytest.raises(LabFileError) as told:
        read_lab_file(path)
    assert "'linux-source-7.2' is no kernel source: write SUITE/PACKAGE, or the path of a kernel tree" in str(
        told.value
    )
    assert "[guest] kind 'xen' is not one of clone, uml; a package can add a kind of guest" in str(told.value)


@pytest.mark.parametrize("kernel", ['"trixie/linux-source-6.12"', "[]", "[7]", '[""]'])
def test_kernels_are_a_list_of_sources(tmp_path: Path, kernel: str) -> None:
    """A text, an empty list and an invalid source are one mistake each, with its place."""
    path = tmp_path / "lab.toml"
    path.write_text(f'[guest]\nkind = "uml"\nkernel = {kernel}\n')
    with pytest.raises(LabFileError) as told:
        read_lab_file(path)
    assert str(told.value).count("[guest.kernel") == 1, told.value


def test_a_lab_names_the_provider_under_test(tmp_path: Path) -> None:
    """Every kind of lab has the section. Settings are numbers, texts, true or false."""
    path = tmp_path / "lab.toml"
    path.write_text('[provider]\nuse = "theirs.san:Mine"\nsettings = {cache = false, max_clients = 3, late_s = 0.5}\n')
    found = read_lab_file(path).provider
    assert (found.use, found.settings) == ("theirs.san:Mine", {"cache": False, "max_clients": 3, "late_s": 0.5})
    path.write_text('[provider]\nuse = "rm -rf"\nsettings = {cache = [1]}\nother = 1\n')
    with pytest.raises(LabFileError) as refused:
        read_lab_file(path)
    for mistake in ("'rm -rf' is no provider", "[1] is not a number, a text, true or false", "other"):
        assert mistake in str(refused.value)
