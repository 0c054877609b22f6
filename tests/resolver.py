"""A DNS resolver for tests, as a process of its own: resolver.py PORT FILE.

FILE holds {"name": {"A": [...], "AAAA": [...], "SRV": [[port, target], ...]}} in JSON and is read for each question;
{"name": "SERVFAIL"} fails. By UDP, answers over 512 bytes, or what the question allows, are cut off; by TCP none is.
"""

import ipaddress
import json
import socket
import socketserver
import struct
import sys
import threading

KINDS = {1: "A", 28: "AAAA", 33: "SRV"}


def encode(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def value(kind, record):
    if kind == "SRV":
        return struct.pack(">HHH", 0, 0, record[0]) + encode(record[1])
    return ipaddress.ip_address(record).packed


def answer(question, most):
    """Return the answer to a question, cut off where it is longer than `most` bytes."""
    number, _, _, _, _, more = struct.unpack(">HHHHHH", question[:12])
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    (kind,) = struct.unpack(">H", question[at + 1 : at + 3])
    asked = question[12 : at + 5]
    if more and most:
        most = struct.unpack(">H", question[at + 8 : at + 10])[0]
    with open(sys.argv[2]) as file:
        known = json.load(file).get(".".join(labels))
    if known == "SERVFAIL" or known is None:
        return struct.pack(">HHHHHH", number, 0x8182 if known else 0x8183, 1, 0, 0, 0) + asked
    records = [value(KINDS[kind], each) for each in known.get(KINDS.get(kind), [])]
    body = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(each)) + each for each in records)
    whole = struct.pack(">HHHHHH", number, 0x8180, 1, len(records), 0, 0) + asked + body
    if most and len(whole) > most:
        return struct.pack(">HHHHHH", number, 0x8380, 1, 0, 0, 0) + asked
    return whole


class ByTCP(socketserver.StreamRequestHandler):
    def handle(self):
        length = struct.unpack(">H", self.rfile.read(2))[0]
        whole = answer(self.rfile.read(length), 0)
        self.wfile.write(struct.pack(">H", len(whole)) + whole)


def main():
    address = ("127.0.0.1", int(sys.argv[1]))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(address)
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    threading.Thread(target=socketserver.ThreadingTCPServer(address, ByTCP).serve_forever, daemon=True).start()
    print("ready", flush=True)
    while True:
        question, peer = udp.recvfrom(65535)
        udp.sendto(answer(question, 512), peer)


if __name__ == "__main__":
    main()
