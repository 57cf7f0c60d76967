"""A kubelet's PodResources API on a socket: real gRPC, messages written by hand from the .proto."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent import futures
from pathlib import Path

import grpc

Pods = Mapping[tuple[str, str], Mapping[str, Mapping[str, Iterable[str]]]]
"""(namespace, pod) -> container -> resource -> device ids."""


def field(number: int, value: bytes | str | int) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def response(pods: Pods) -> bytes:
    """A ListPodResourcesResponse, with the CPU ids and NUMA topology that a kubelet sends along."""
    topology = field(3, field(1, field(1, 1)))
    found = b""
    for (namespace, pod), containers in pods.items():
        inner = b""
        for container, resources in containers.items():
            devices = b"".join(
                field(2, field(1, name) + b"".join(field(2, each) for each in ids) + topology)
                for name, ids in resources.items()
            )
            inner += field(
                3, field(1, container) + devices + field(3, b"\x00\x01\xac\x02") + field(4, field(2, 1 << 33))
            )
        found += field(1, field(1, pod) + field(2, namespace) + inner)
    return found


class Kubelet:
    """Serves `pods` until it is stopped; hangs while `hung` is set."""

    def __init__(self, socket: Path, pods: Pods | None = None) -> None:
        self.socket, self.pods = socket, dict(pods or {})
        self.hung = threading.Event()
        self._go = threading.Event()
        self.start()

    def start(self) -> None:
        """Serve, after a stop too."""
        self._go.clear()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(self._list)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler}),)
        )
        self._server.add_insecure_port(f"unix://{self.socket}")
        self._server.start()

    def stop(self) -> None:
        """Be gone, and the socket with it."""
        self._go.set()
        self._server.stop(0).wait()
        self.socket.unlink(missing_ok=True)

    def _list(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if self.hung.is_set():
            self._go.wait(30)
        return response(self.pods)
