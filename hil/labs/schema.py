"""The types of the values in lab files, and the functions that make each from TOML or refuse it.

A section with several kinds, named by its key ``kind``, is registered with ``by_kind``.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Any, Literal, NewType, Protocol, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ClassValidationError
from cattrs.gen import make_dict_structure_fn

from hil.seams import Seam

MTU_LIMITS = (1280, 9000)
MEMORY_LIMITS = (384, 16384)
NODE_LIMITS = (2, 64)
PORT_LIMITS = (0, 65535)
IFNAMSIZ = 16
THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
"""No machine has an address in this network (RFC 1122, 3.2.1.3)."""

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
"""The name of a device or a node: no blank, no slash, not empty."""
NetdevName = NewType("NetdevName", str)
"""A name that a kernel can give to a netdev."""
Namespace = NewType("Namespace", str)
"""The name of a network namespace, or empty for none."""
Host = NewType("Host", str)
"""A host's name for ssh: not empty."""
LabKindName = NewType("LabKindName", str)
"""The name of a kind of lab."""
Words = NewType("Words", tuple[str, ...])
"""A command and its arguments: at least one text, and the first is not empty."""
ProviderName = NewType("ProviderName", str)
"""PACKAGE.MODULE:FACTORY or a name, or empty for none."""
SettingValue = NewType("SettingValue", object)
"""A number, a text, true or false."""
Seconds = NewType("Seconds", int)
"""A time limit: 1 to 3600."""


STAND_IN = "stand in"
"""Key in the metadata of a schema's field. Its value replaces a section that is missing or wholly invalid, so that the
rest of the file can be checked."""


@attrs.frozen
class LabSection:
    """``[lab]``: the lab's name and its kind (hil.labs.kinds)."""

    name: Name = Name("soft-pair")
    kind: LabKindName = LabKindName("soft-pair")


@attrs.frozen
class ProviderSection:
    """``[provider]``: the provider under test, unless the command names another.

    ``use`` is PACKAGE.MODULE:FACTORY, or the name of an installed provider, or empty for the bench's own provider.
    ``settings`` are numbers, texts, true or false.
    """

    use: ProviderName = ProviderName("")
    settings: dict[str, SettingValue] = attrs.field(factory=dict)


class LabFile(Protocol):
    """A lab file that was read: an instance of the attrs class that its kind of lab names as its schema."""

    @property
    def lab(self) -> LabSection: ...


def _strict(kind: type) -> Any:
    names = {int: "an integer", str: "a string", bool: "true or false"}

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{value!r} is not {names[kind]}")
        if isinstance(value, str) and not value.isprintable():
            raise ValueError(f"{value!r} contains characters that cannot be printed")
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
    """An MTU, or 0 to leave it unchanged."""
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
        # Addresses are compared as text, so this is the form that the kernel uses.
        return str(known)

    return structure


def _unusable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The reason why no connection can be made to an address, or an empty text."""
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return "it names a scope"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return "it is an IPv4-mapped address"
    kinds = {"multicast": address.is_multicast, "unspecified": address.is_unspecified, "loopback": address.is_loopback}
    if isinstance(address, ipaddress.IPv4Address):
        kinds |= {"broadcast": str(address) == "255.255.255.255", "this network's own": address in THIS_NETWORK}
    kinds["link-local, and names no scope"] = isinstance(address, ipaddress.IPv6Address) and address.is_link_local
    return ", ".join(f"it is {kind}" for kind, so in kinds.items() if so)


def _name(value: Any, of: Any) -> str:
    text: str = _strict(str)(value, of)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}", text):
        raise ValueError(f"{text!r} is not a name: letters, digits, and any of _ . : @ -")
    return text


def netdev_name(value: Any, of: Any) -> str:
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


def _words(value: Any, _: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not value[0]:
        raise ValueError(f"{value!r} is no command: a list of a program and its arguments")
    return tuple(_strict(str)(word, str) for word in value)


def _provider(value: Any, of: Any) -> str:
    text: str = _strict(str)(value, of)
    if text and not re.fullmatch(r"[\w.:-]+", text):
        raise ValueError(f"{text!r} is no provider: PACKAGE.MODULE:FACTORY, or the name of an installed one")
    return text


def _setting(value: Any, _: Any) -> object:
    if type(value) not in (bool, int, float, str):
        raise ValueError(f"{value!r} is not a number, a text, true or false")
    return value


def _choice(value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, get_args(choices)))}")
    return value


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


class SectionKind(Protocol):
    """A kind that a section's key ``kind`` can name."""

    schema: type
    """An attrs class: the section's keys, with ``kind`` among them."""


@attrs.frozen
class _ByKind:
    seam: Seam[Any]
    default: str


_BY_KIND: dict[type, _ByKind] = {}
_HOOKS: dict[Any, Callable[[Any, Any], Any]] = {}


def by_kind(section: type, seam: Seam[Any], default: str = "") -> None:
    """Register a section class. Such a section is read as the schema of the kind (a ``SectionKind``) that it names.

    ``default``: the kind of a section without the key ``kind``, or empty if the key is required.
    """
    _BY_KIND[section] = _ByKind(seam, default)


def schemas_of(section: type) -> list[tuple[str, type]]:
    """The bench's own schemas of a section, each with its kind's name. A single schema has an empty name."""
    named = _BY_KIND.get(section)
    found = {name: named.seam.load(name).schema for name in named.seam.built_in} if named is not None else {}
    if len(set(found.values())) <= 1:
        return [("", next(iter(found.values()), section))]
    return list(found.items())


def value_of(kind: Any, hook: Callable[[Any, Any], Any]) -> None:
    """Register ``hook(value, kind)``, which makes values of the type ``kind`` and raises ValueError."""
    _HOOKS[kind] = hook


def _structured_by_kind(plain: Callable[[type], Any], section: _ByKind) -> Any:
    """A function that reads a table as the schema of its kind. ``plain`` makes a function that reads a table as a
    given class."""
    seam = section.seam

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is not a table")
        kind = value.get("kind", section.default or None)
        if isinstance(kind, str) and kind in seam.names():
            schema = seam.load(kind).schema
            return plain(schema)(value | {"kind": kind}, schema)
        mistake = ValueError(f"kind {seam.unknown(kind)}" if "kind" in value else f"kind is missing: {seam.choices()}")
        if not seam.built_in:
            raise mistake
        # Guess the kind from the keys, so that the other mistakes in the table are reported too.
        schemas = {name: seam.load(name).schema for name in seam.built_in}
        likely = max(schemas, key=lambda name: len(value.keys() & attrs.fields_dict(schemas[name]).keys()))
        try:
            plain(schemas[likely])(value | {"kind": likely}, schemas[likely])
        except ClassValidationError as error:
            raise ClassValidationError(str(error), [mistake, *error.exceptions], schemas[likely]) from error
        raise mistake

    return structure


def lab_converter(*, strict: bool = True) -> cattrs.Converter:
    """A converter that makes sections from tables. ``strict``: unknown keys are refused."""
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
    converter.register_structure_hook(NetdevName, netdev_name)
    converter.register_structure_hook(Namespace, _name_or_none)
    converter.register_structure_hook(Host, _host)
    converter.register_structure_hook(Words, _words)
    converter.register_structure_hook(ProviderName, _provider)
    converter.register_structure_hook(SettingValue, _setting)
    converter.register_structure_hook(Seconds, _between(1, 3600))

    def factory(cls: type) -> Any:
        structure: Any = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=strict)

        def checked(value: Any, of: type) -> Any:
            if not isinstance(value, dict):
                raise ValueError(f"{value!r} is not a table")
            return structure(value, of)

        return checked

    converter.register_structure_hook_factory(attrs.has, factory)
    for known, hook in _HOOKS.items():
        converter.register_structure_hook_func(lambda kind, known=known: kind == known, hook)  # type: ignore[misc]
    for section, named in _BY_KIND.items():
        hook = _structured_by_kind(factory, named)
        converter.register_structure_hook_func(lambda kind, known=section: kind is known, hook)  # type: ignore[misc]
    return converter


def table(values: dict[str, Any], *keys: str) -> Any:
    """The value at ``keys`` in nested tables, or None."""
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found
