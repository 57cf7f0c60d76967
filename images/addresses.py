"""Which hosts are this machine or this link, by their very name."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name: localhost, 127.0.0.0/8, ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_link_local(host: str) -> bool:
    """Whether a host is an address that only this link has; clouds serve their metadata on one."""
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False
