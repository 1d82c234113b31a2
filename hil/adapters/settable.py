"""Where the settings are that provisioning may change."""

SETTABLE = ("/sys/class/net/", "/proc/sys/net/", "/sys/kernel/config/rdma_cm/")
