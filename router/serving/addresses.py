"""Which addresses are machines on the open internet, and which are this network's, this machine's or nobody's."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

# What is not for everybody, of IANA's registries of special-purpose addresses; ipaddress.is_global changes between patches of Python.
INSIDE_V4 = [
    IPv4Network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
        "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
        "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # public by number, but the host's own service on every machine of Azure
    )
]  # fmt: skip
OUTSIDE_V6 = IPv6Network("2000::/3")  # all others are local, multicast, reserved or hold an IPv4 address
INSIDE_V6 = [
    IPv6Network(block)
    for block in (
        "2001::/23",  # Teredo, ORCHID, benchmarks
        "2001:db8::/32",
        "2002::/16",  # 6to4: any IPv4 address
        "2620:4f:8000::/48",
        "3fff::/20",
    )
]
NAT64 = IPv6Network("64:ff9b::/96")  # what a network without IPv4 sees of it: the last 32 bits


def is_public(address: str) -> bool:
    """Is this the address of a machine on the open internet?"""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in block for block in INSIDE_V4)
    if ip in NAT64:
        return is_public(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.scope_id is None and ip in OUTSIDE_V6 and not any(ip in block for block in INSIDE_V6)
