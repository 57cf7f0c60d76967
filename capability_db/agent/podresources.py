"""Which pod holds which device, as the kubelet says: PodResources API, v1.PodResourcesLister/List.

The messages are read with a decoder of the few fields that matter (k8s.io/kubelet/pkg/apis/podresources/v1/api.proto):
the protobuf package and generated classes would weigh more than the rest of the agent.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from capability_db import resources
from capability_db.agent import inventory

SOCKET: Final = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
METHOD: Final = "/v1.PodResourcesLister/List"
MAX_BYTES: Final = 16 * 1024 * 1024
"""Of one answer; the kubelet's own limit."""


class PodResourcesError(Exception):
    """The kubelet did not say."""


class Kubelet:
    """The kubelet at a socket."""

    def __init__(self, socket: Path, deadline_seconds: float = 3.0) -> None:
        self._socket, self._deadline = socket, deadline_seconds
        self._channel: Any = None

    def holders(self) -> inventory.Holders:
        """Who holds what; raises PodResourcesError where the kubelet does not answer in time."""
        import grpc  # type: ignore[import-untyped]

        if not self._socket.exists():
            raise PodResourcesError(f"{self._socket} is not there")
        try:
            if self._channel is None:
                options = (
                    ("grpc.max_receive_message_length", MAX_BYTES),
                    ("grpc.enable_http_proxy", 0),
                    ("grpc.default_authority", "localhost"),  # else it is the path, which HTTP/2 servers refuse
                )
                self._channel = grpc.insecure_channel(f"unix://{self._socket.absolute()}", options)
            # Waits for a kubelet that is just restarting, within the deadline.
            answer = self._channel.unary_unary(METHOD)(b"", timeout=self._deadline, wait_for_ready=True)
        except grpc.RpcError as error:
            self.close()  # a channel backs off for minutes; a new one asks at once
            code = error.code().name if isinstance(error, grpc.Call) else type(error).__name__
            raise PodResourcesError(f"{self._socket}: {code}: {_details(error)}") from error
        return decode(answer)

    def close(self) -> None:
        """Let the connection go."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


def _details(error: Any) -> str:
    return " ".join(str(error.details() if hasattr(error, "details") else error).split())[:200]


def decode(answer: bytes) -> inventory.Holders:
    """Who holds what, of a ListPodResourcesResponse; raises PodResourcesError where the bytes are none.

    Ids of time-shared devices (`GPU-1::3`) name the device itself.
    """
    found: dict[str, dict[resources.Holder, None]] = {}
    try:
        for number, pod in _fields(answer):
            if number == 1 and isinstance(pod, bytes):
                for holder, device in _devices(pod):
                    found.setdefault(device.partition("::")[0], {})[holder] = None
    except (IndexError, ValueError) as error:
        raise PodResourcesError(f"the kubelet's answer cannot be read: {error}") from error
    return {device: tuple(holders) for device, holders in found.items()}


def _devices(pod: bytes) -> Iterator[tuple[resources.Holder, str]]:
    """Holder and device id, of a PodResources.

    PodResources {name=1, namespace=2, containers=3}, ContainerResources {name=1, devices=2}, ContainerDevices
    {device_ids=2}.
    """
    fields = list(_fields(pod))
    name, namespace = (_text(fields, number) for number in (1, 2))
    for container in _messages(fields, 3):
        inner = list(_fields(container))
        holder = resources.Holder(namespace=namespace, pod=name, container=_text(inner, 1))
        for device in _messages(inner, 2):
            for device_id in _messages(list(_fields(device)), 2):
                yield holder, device_id.decode()


def _messages(fields: list[tuple[int, bytes | int]], number: int) -> Iterator[bytes]:
    return (value for field, value in fields if field == number and isinstance(value, bytes))


def _text(fields: list[tuple[int, bytes | int]], number: int) -> str:
    return next(_messages(fields, number), b"").decode()


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Field number and value of each field of a protobuf message; raises ValueError or IndexError where it is none."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place + length > len(data):
            raise ValueError("it ends within a field")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
    raise ValueError("a number has more than ten bytes")
