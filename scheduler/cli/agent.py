"""`anygpu agent`: what a node's GPUs are and how they are, told as the node's NodeGPUs object."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import prometheus_client
import typer

from capability_db import resources
from capability_db.agent import devices, loop, podresources, probe
from capability_db.catalogue import Catalogue
from scheduler import errors, kubeapi, nodegpus
from scheduler.cli import logs, printing

MAX_DEADLINE_SECONDS = 10.0
"""That a library may take: one that comes back later is as good as hung."""

COLUMNS = ("#", "VENDOR", "SKU", "DEVICE", "PCI", "MIB", "USED", "CUT", "HELD BY", "HEALTH")


def command(
    node_name: Annotated[
        str | None, typer.Option(envvar="NODE_NAME", help="the node, and its NodeGPUs object", metavar="NAME")
    ] = None,
    period: Annotated[float, typer.Option(min=0.1, max=3600, help="seconds between two looks at the devices")] = 10,
    beat: Annotated[
        float, typer.Option(min=1, max=86400, help="seconds between two writes while nothing changes")
    ] = 300,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="port of the agent's own Prometheus metrics; 0: none")
    ] = 0,
    pod_resources: Annotated[
        Path, typer.Option(metavar="SOCKET", help="the kubelet's PodResources socket, which tells who holds what")
    ] = podresources.SOCKET,
    once: Annotated[bool, typer.Option("--once", help="print the inventory and exit; needs no cluster")] = False,
    output: Annotated[
        printing.Output,
        typer.Option("--output", "-o", help="with --once: table for people; json and yaml for programs"),
    ] = printing.Output.table,
) -> None:
    """Report this node's GPUs: models, partitions, links, health, who holds them. Runs on every GPU node (DaemonSet).

    NVIDIA's are read through NVML, AMD's through AMD SMI, in a process of their own that is killed when it hangs; where
    neither library is, it says so and waits for one. The inventory becomes the status of the NodeGPUs object of the
    node's name, written when something changes and once in a while.

    Examples:

      anygpu agent --once

      anygpu agent --once -o yaml --pod-resources /var/lib/kubelet/pod-resources/kubelet.sock

      anygpu agent --node-name gpu-node-7 --metrics-port 9417
    """
    probes = {vendor: probe.Probe(vendor, min(period, MAX_DEADLINE_SECONDS)) for vendor in devices.VENDORS}
    eyes = loop.Eyes(probes, podresources.Kubelet(pod_resources), Catalogue.builtin(), loop.now)
    try:
        if once:
            logs.silence()
            status = eyes.look()
            _print(status, output)
            if any(driver.error for driver in status.drivers):
                raise typer.Exit(1)
            return
        if not node_name:
            raise errors.InvalidInput(
                "--node-name is not given, and NODE_NAME is not set: say which node this is, or print with --once"
            )
        logs.log_to_stderr()
        _run(eyes, node_name, loop.Settings(period, beat), metrics_port)
    finally:
        eyes.close()


app = typer.Typer(
    name="anygpu",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("agent")(command)


@app.callback()
def _anygpu() -> None:
    """The agent alone."""


def _run(eyes: loop.Eyes, node: str, settings: loop.Settings, metrics_port: int) -> None:
    sink = nodegpus.ApiSink(kubeapi.connect(), node)
    if metrics_port:
        try:
            prometheus_client.start_http_server(metrics_port)
        except OSError as error:
            raise errors.InvalidInput(
                f"--metrics-port {metrics_port} cannot be had: {error.strerror or error}; choose another"
            ) from error
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    loop.Agent(eyes, sink, settings).run(stop)


def _print(status: resources.NodeGPUsStatus, output: printing.Output) -> None:
    if output is not printing.Output.table:
        printing.emit(status.model_dump(mode="json", by_alias=True, exclude_none=True), output)
        return
    if status.devices:
        printing.table(COLUMNS, (_row(place, each) for place, each in enumerate(status.devices)), right=("MIB", "USED"))
    for driver in status.drivers:
        runtime = f", CUDA up to {driver.runtime}" if driver.runtime else ""
        printing.say(f"{driver.vendor} driver {driver.version or 'of unknown version'}{runtime}")
    kinds: dict[str, int] = {}
    for link in status.links:
        kinds[link.kind] = kinds.get(link.kind, 0) + 1
    if kinds:
        printing.say("pairs of devices by link: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    for condition in status.conditions:
        if condition.status == "False":
            printing.warn(f"{condition.type}: {condition.reason}: {condition.message}")


def _row(place: int, device: resources.Device) -> list[object]:
    cut = None
    if device.mig is not None and device.mig.enabled:
        cut = ", ".join(each.profile for each in device.mig.instances) or "MIG on, no instances"
    elif device.partition is not None:
        cut = "/".join(each for each in (device.partition.compute, device.partition.memory) if each)
    held = [
        *device.holders,
        *(each for instance in (device.mig.instances if device.mig else ()) for each in instance.holders),
    ]
    health = "; ".join(device.problems) or ", ".join(f"throttled: {each}" for each in device.throttling) or "ok"
    return [
        place,
        device.vendor,
        device.sku or f"unknown ({device.product or device.pci_device_id or 'nothing is said'})",
        device.uuid,
        device.pci_bus_id,
        device.memory_mib,
        device.memory_used_mib,
        cut,
        ", ".join(dict.fromkeys(f"{each.namespace}/{each.pod}" for each in held)),
        health,
    ]
