"""The agent's own metrics: what it read, how long that took, what it wrote."""

from collections.abc import Iterable
from typing import Final

import prometheus_client

from capability_db import resources

MAX_SERIES: Final = 128
"""Devices that are shown, as many as a NodeGPUs lists."""

LABELS = ("vendor", "device")
"""`device` is the UUID; of an AMD partition, which may share the UUID, the PCI address."""

HEALTHY = prometheus_client.Gauge("anygpu_agent_device_healthy", "Whether a device is healthy (1) or not (0)", LABELS)
MEMORY = prometheus_client.Gauge("anygpu_agent_device_memory_bytes", "Memory of a device", LABELS)
MEMORY_USED = prometheus_client.Gauge("anygpu_agent_device_memory_used_bytes", "Memory in use on a device", LABELS)
TEMPERATURE = prometheus_client.Gauge("anygpu_agent_device_temperature_celsius", "Temperature of a device", LABELS)
POWER = prometheus_client.Gauge("anygpu_agent_device_power_watts", "Power drawn by a device", LABELS)
READ_SECONDS = prometheus_client.Histogram(
    "anygpu_agent_read_seconds",
    "How long a vendor's library took to say all",
    ("vendor",),
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
FAILURES = prometheus_client.Counter(
    "anygpu_agent_failures_total", "What did not answer: a vendor's library, the kubelet, the API", ("what",)
)
WRITES = prometheus_client.Counter("anygpu_agent_writes_total", "Status writes, by what caused them", ("cause",))
HEARTBEAT = prometheus_client.Gauge("anygpu_agent_last_write_timestamp_seconds", "When the API last took a status")


def show(devices: Iterable[resources.Device]) -> None:
    """Set the gauges of all devices; those of devices no longer listed go."""
    gauges = (HEALTHY, MEMORY, MEMORY_USED, TEMPERATURE, POWER)
    for gauge in gauges:
        gauge.clear()
    for device in [*devices][:MAX_SERIES]:
        names = (device.uuid, device.pci_bus_id) if device.partition is None else (device.pci_bus_id, device.uuid)
        labels = (device.vendor, next(filter(None, names), str(device.index)))
        mib = (device.memory_mib, device.memory_used_mib)
        memory, used = (None if each is None else each * 1024 * 1024 for each in mib)
        values = (int(device.healthy), memory, used, device.temperature_c, device.power_watts)
        for gauge, value in zip(gauges, values, strict=True):
            if value is not None:
                gauge.labels(*labels).set(value)
