"""Plan steps made real: the only code that touches netlink, namespaces and /proc/sys."""
