"""Runs commands where every name that is looked up and every connection is recorded, and nothing leaves the machine.

`python recorded_network.py RECORD COMMAND...` must be started inside a network and a mount namespace of its own, by a
user who is root there. All addresses are routed to this machine, whose DNS server and whose web server are threads of
this process. It writes `{"lookups": [...], "connections": [...], "status": ...}` to RECORD as JSON.
"""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SETTLE_S = 3.0  # for what background threads send after a command has ended
LOCAL = "127."


def enter():
    """Brings up the loopback interface as the way to every address, and makes this machine its DNS server."""
    resolver = Path(tempfile.mkdtemp()) / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    for command in (
        "ip link set lo up",
        "ip route add local default dev lo",
        f"mount --bind {resolver} /etc/resolv.conf",
    ):
        subprocess.run(command.split(), check=True)


def name_of(query):
    """Returns the name that a DNS query asks for."""
    labels, place = [], 12
    while size := query[place]:
        labels.append(query[place + 1 : place + 1 + size].decode())
        place += 1 + size
    return ".".join(labels)


def record_lookups(server, names):
    """Answers each lookup of an IPv4 address with one outside, so that the connection that follows is seen as well."""
    while True:
        query, client = server.recvfrom(4096)
        names.append(name_of(query))
        kind = int.from_bytes(query[-4:-2])
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton("192.0.2.1") if kind == 1 else b""
        header = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if answer else b"\0\0") + b"\0\0\0\0"
        question = query[12 : 12 + query[12:].index(b"\0") + 5]
        server.sendto(header + question + answer, client)


def record_connections(server, connections):
    """Notes to which address of another machine somebody connects, and hangs up."""
    while True:
        connection, _ = server.accept()
        address, port = connection.getsockname()
        connection.close()
        if not address.startswith(LOCAL):
            connections.append(f"{address}:{port}")


def main(record, *command):
    enter()
    names, connections = [], []
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind(("127.0.0.1", 53))
    threading.Thread(target=record_lookups, args=(dns, names), daemon=True).start()
    for port in (80, 443):
        server = socket.create_server(("0.0.0.0", port))  # noqa: S104  in a network of its own
        threading.Thread(target=record_connections, args=(server, connections), daemon=True).start()
    ended = subprocess.run(command, check=False)
    time.sleep(SETTLE_S)
    Path(record).write_text(
        json.dumps({"lookups": names, "connections": connections, "status": ended.returncode}), encoding="utf-8"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
