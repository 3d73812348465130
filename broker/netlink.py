"""Putting an IP address on an interface and announcing it, by netlink and raw sockets alone."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_RTM_NEWADDR, _RTM_DELADDR, _NLMSG_ERROR = 20, 21, 2
_REQUEST_ACK, _CREATE_REPLACE = 0x1 | 0x4, 0x400 | 0x100
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NO_DAD = 0x02
"""IPv6: usable at once; the election has made sure that nobody else has it."""
_ETH_ARP = 0x0806
_BROADCAST = b"\xff" * 6


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address on one interface of this host."""

    address: Address
    interface: str

    def add(self) -> None:
        """Put it there; it may be there already. :raises OSError:"""
        self._change(_RTM_NEWADDR, _REQUEST_ACK | _CREATE_REPLACE)

    def remove(self) -> bool:
        """Take it away; False where it was not there. :raises OSError:"""
        try:
            self._change(_RTM_DELADDR, _REQUEST_ACK)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
                return False
            raise
        return True

    def announce(self) -> None:
        """Tell the neighbours (gratuitous ARP, unsolicited neighbour advertisement).

        :raises OSError:
        """
        if isinstance(self.address, ipaddress.IPv4Interface):
            self._announce_v4(self.address.ip.packed)
        else:
            self._announce_v6(self.address.ip.packed)

    def _change(self, kind: int, flags: int) -> None:
        ip = self.address.ip.packed
        v6 = len(ip) == 16
        index = socket.if_nametoindex(self.interface)
        body = struct.pack(
            "=BBBBI",
            socket.AF_INET6 if v6 else socket.AF_INET,
            self.address.network.prefixlen,
            _NO_DAD if v6 else 0,
            0,
            index,
        )
        for name in (_IFA_LOCAL, _IFA_ADDRESS):
            body += struct.pack("=HH", 4 + len(ip), name) + ip
        message = struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
            link.settimeout(1.0)
            link.sendto(message, (0, 0))
            answer = link.recv(65_536)
        (answered,) = struct.unpack_from("=H", answer, 4)
        (code,) = struct.unpack_from("=i", answer, 16)
        if answered == _NLMSG_ERROR and code:
            raise OSError(-code, os.strerror(-code), str(self.address))

    def _announce_v4(self, ip: bytes) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind((self.interface, 0))
            mac: bytes = link.getsockname()[4]
            if len(mac) != 6 or not any(mac):
                return  # loopback and the like have no neighbours
            for operation, target in ((1, bytes(6)), (2, _BROADCAST)):
                arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
                link.send(
                    _BROADCAST + mac + struct.pack("!H", _ETH_ARP) + arp + mac + ip + target + ip
                )

    def _announce_v6(self, ip: bytes) -> None:
        index = socket.if_nametoindex(self.interface)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind((self.interface, 0))
            mac: bytes = link.getsockname()[4]
        if len(mac) != 6 or not any(mac):
            return
        advert = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + ip + bytes((2, 1)) + mac
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as link:
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            link.sendto(advert, ("ff02::1", 0, 0, index))
