"""The network settings that provisioning may change: files of sysfs, procfs and configfs."""

SETTABLE = ("/sys/class/net/", "/proc/sys/net/", "/sys/kernel/config/rdma_cm/")
# Links that lead out of a netdev's own folder, to files that remove or reset a device.
_AWAY = ("device", "subsystem", "master", "phydev", "upper_", "lower_")


def why_not_settable(path: str) -> str:
    """The reason why provisioning may not write ``path``, or an empty text."""
    if not path.startswith(SETTABLE):
        return f"it is not below {' or '.join(SETTABLE)}"
    parts = path.split("/")
    if {"", ".", ".."} & set(parts[1:]):
        return "it is not the plain path of a file"
    # The settings of an RDMA device are below the device of its netdev, and are allowed.
    own = parts[8:] if parts[5:7] == ["device", "infiniband"] else parts[5:]
    if path.startswith("/sys/class/net/") and (away := next((p for p in own if p.startswith(_AWAY)), "")):
        return f"{away} leads out of the adapter's own folder"
    return ""
