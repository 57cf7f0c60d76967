"""`anygpu serve`: extender, webhook and controllers in one process."""

import difflib
import ipaddress
from pathlib import Path
from typing import Annotated

import typer

from capability_db.catalogue import Catalogue
from scheduler import documents, errors, needs
from scheduler import fleet as fleets
from scheduler.cli import common, logs


def command(
    cluster: common.ClusterOption = None,
    host: Annotated[
        str, typer.Option(help="address of the extender port; loopback, since it is plain HTTP")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="extender port")] = 8080,
    webhook_host: Annotated[str, typer.Option(help="address of the webhook port")] = "0.0.0.0",  # noqa: S104
    webhook_port: Annotated[int, typer.Option(min=0, max=65535, help="webhook port (TLS)")] = 8443,
    cert_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="tls.crt, tls.key and ca.crt; made there if they are missing")
    ] = Path("anygpu-certs"),
    dns_name: Annotated[
        list[str] | None, typer.Option("--dns-name", help="names and addresses in a certificate made here")
    ] = None,
    bindings: Annotated[
        str, typer.Option(help="how pods may be bound, of early, late and claim; others are refused", metavar="LIST")
    ] = "early",
    rescue_after: Annotated[
        float,
        typer.Option(
            help="seconds that an early pod waits for its vendor before it is replaced, so that another vendor's free "
            "GPU can serve it; 0: never",
            min=0,
            max=86400,
        ),
    ] = 60,
    webhook_configuration: Annotated[
        str | None,
        typer.Option(help="webhook configurations of this name get the CA; they must exist", metavar="NAME"),
    ] = None,
) -> None:
    """Serve the scheduler extender and the admission webhook, and keep the nodes' SKU labels.

    Without --cluster it watches the kubeconfig's cluster, or the one it runs in.

    Examples:

      anygpu serve

      anygpu serve --bindings early,late,claim

      anygpu serve --cluster manifests/demo/cluster.yaml --cert-dir /tmp/certs
    """
    on = _bindings(bindings)
    if not _is_loopback(host):
        raise errors.InvalidInput(
            f"--host {host}: the extender port is plain HTTP and stays on loopback; run anygpu beside kube-scheduler"
        )
    names = dns_name or ["anygpu.anygpu-system.svc", "anygpu.anygpu-system.svc.cluster.local", "localhost", "127.0.0.1"]
    import uvloop

    from scheduler import kubeapi
    from scheduler.cli import serving
    from webhooks import tls

    tls.ensure(cert_dir, names)
    fleet = fleets.Fleet(Catalogue.builtin())
    api = None
    if cluster is not None:
        documents.load(fleet, documents.read(cluster), str(cluster))
    else:
        api = kubeapi.connect()
    logs.log_to_stderr()
    settings = serving.Settings(
        (host, port), (webhook_host, webhook_port), cert_dir, webhook_configuration, on, rescue_after
    )
    uvloop.run(serving.serve(fleet, api, settings))


def _bindings(text: str) -> list[needs.Binding]:
    asked = [item.strip() for item in text.split(",")]
    for item in asked:
        if item not in needs.BINDINGS:
            near = difflib.get_close_matches(item, needs.BINDINGS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise errors.InvalidInput(
                f"--bindings {text}: {item!r} is not one of {', '.join(needs.BINDINGS)}, for example early,late{hint}"
            )
    return [binding for binding in needs.BINDINGS if binding in asked]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
