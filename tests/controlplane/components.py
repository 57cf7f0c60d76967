"""How each component is started: its command line, as a function of the folder, the binaries and the ports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import build

ETCD = "etcd"
ETCD_PEER = "etcd-peer"
APISERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
KWOK = "kwok"

#: Killed in this order, so that nothing fills its log with complaints about what has gone already.
STOP_ORDER = (KWOK, SCHEDULER, CONTROLLER_MANAGER, APISERVER, ETCD)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where things lie: the cluster's folder, the binaries, and the loopback port of each process."""

    directory: Path
    binaries: Path
    ports: Mapping[str, int]

    @property
    def kubeconfig(self) -> Path:
        """Return the administrator's kubeconfig."""
        return self.directory / "kubeconfig"

    @property
    def keys(self) -> Path:
        """Return the folder of keys, certificates and tokens."""
        return self.directory / "keys"

    def url(self, name: str, scheme: str = "https") -> str:
        """Return where a process listens."""
        return f"{scheme}://127.0.0.1:{self.ports[name]}"


def etcd(at: Layout) -> list[str]:
    """Return etcd's command; its data is thrown away with the folder, so it need not wait for the disk."""
    client, peer = at.url(ETCD, "http"), at.url(ETCD_PEER, "http")
    return [
        f"{at.binaries}/etcd",
        f"--data-dir={at.directory}/etcd",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=warn",
    ]


def apiserver(at: Layout) -> list[str]:
    """Return kube-apiserver's command: RBAC, static tokens, service accounts that can be given tokens."""
    return [
        f"{at.binaries}/kube-apiserver",
        f"--etcd-servers={at.url(ETCD, 'http')}",
        *_serving(at, APISERVER),
        f"--cert-dir={at.directory}/apiserver",
        "--advertise-address=127.0.0.1",  # else it wants a network interface besides loopback
        "--endpoint-reconciler-type=none",
        f"--service-account-key-file={at.keys}/service-accounts.key",
        f"--service-account-signing-key-file={at.keys}/service-accounts.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--token-auth-file={at.keys}/tokens.csv",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",  # as every installer sets it; AMD's agent is
        "--service-cluster-ip-range=10.0.0.0/24",
        "--disable-admission-plugins=ServiceAccount",  # else a pod waits for its namespace's account
    ]


def controller_manager(at: Layout) -> list[str]:
    """Return kube-controller-manager's command, for nodes that become usable at once and stay so."""
    return [
        f"{at.binaries}/kube-controller-manager",
        f"--kubeconfig={at.kubeconfig}",
        *_serving(at, CONTROLLER_MANAGER),
        *_open_health(),
        "--leader-elect=false",
        "--controllers=*,-nodeipam",
        f"--service-account-private-key-file={at.keys}/service-accounts.key",
        f"--root-ca-file={at.keys}/ca.crt",
        "--kube-api-qps=1000",
        "--kube-api-burst=2000",
        "--node-monitor-period=1s",  # 5 s by default: how long a node may stay tainted after it is Ready
        "--node-monitor-grace-period=300s",  # kwok may be starved for a while; its nodes are not dead then
        # On a starved machine 1.37's ReplicaSet controller may wait for minutes to see its own last write.
        "--feature-gates=StaleControllerConsistencyReplicaSet=false",
    ]


def scheduler(at: Layout, name: str, config: Path) -> list[str]:
    """Return kube-scheduler's command; at -v=2 its log has a line for each pod bound."""
    return [f"{at.binaries}/kube-scheduler", f"--config={config}", *_serving(at, name), *_open_health(), "--v=2"]


def kwok(at: Layout) -> list[str]:
    """Return kwok's command; it plays the kubelet of every node."""
    return [
        f"{at.binaries}/kwok",
        f"--kubeconfig={at.kubeconfig}",
        f"--config={at.binaries}/{build.STAGES_FILE}",
        "--manage-all-nodes=true",
        "--cidr=10.244.0.0/16",
        "--node-ip=10.0.0.1",
        "--node-lease-duration-seconds=40",
        f"--server-address=127.0.0.1:{at.ports[KWOK]}",
    ]


def _serving(at: Layout, name: str) -> list[str]:
    return [
        "--bind-address=127.0.0.1",
        f"--secure-port={at.ports[name]}",
        f"--tls-cert-file={at.keys}/server.crt",
        f"--tls-private-key-file={at.keys}/server.key",
    ]


def _open_health() -> list[str]:
    return ["--authorization-always-allow-paths=/healthz,/readyz,/livez,/metrics"]
