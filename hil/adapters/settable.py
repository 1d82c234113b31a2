"""The settings of the network that provisioning may change: files of sysfs, procfs and configfs."""

SETTABLE = ("/sys/class/net/", "/proc/sys/net/", "/sys/kernel/config/rdma_cm/")
# Links that lead out of a netdev's own folder: what can be written there removes or resets a device.
_AWAY = ("device", "subsystem", "master", "phydev", "upper_", "lower_")


def why_not_settable(path: str) -> str:
    """Why ``path`` is no setting that provisioning may write, or an empty text."""
    if not path.startswith(SETTABLE):
        return f"it is not below {' or '.join(SETTABLE)}"
    parts = path.split("/")
    if {"", ".", ".."} & set(parts[1:]):
        return "it is not the plain path of a file"
    if path.startswith("/sys/class/net/") and len(parts) > 5 and parts[5].startswith(_AWAY):
        return f"{parts[5]} leads to what is not the netdev's own"
    return ""
