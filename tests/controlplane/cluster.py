"""A real control plane on loopback: etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok's nodes.

Everything a cluster has lies in one folder: keys, kubeconfigs, configuration, etcd's data, and a log and a pid file for
each process. A ``Cluster`` of a test dies with the test; a detached one (``up.py``) stays, and its folder is enough to
find it again. RBAC is on. The one thing that is not real is the kubelet: kwok makes nodes Ready and pods Running.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import build
import components
import httpx
import keys
import launch
import nodes
import yaml

T = TypeVar("T")

#: How long a component may take to become ready: it takes 1-4 s alone, and the machine may be slow and shared.
START_TIMEOUT_S = 120.0
POLL_S = 0.05

DEFAULT_SCHEDULER = "default-scheduler"


class ClusterError(Exception):
    """The control plane, or a request to it, failed; the text ends with the log's tail where a process is to blame."""


class Cluster:
    """A control plane in ``directory``; ``start`` it and ``stop`` it, or use it as a context manager.

    ``scheduler_config`` is laid over the configuration of the default kube-scheduler, key by key at the top level.
    A ``detached`` cluster outlives the process that starts it, and starting it again brings back what has died.
    """

    def __init__(
        self, directory: Path, scheduler_config: Mapping[str, Any] | None = None, *, detached: bool = False
    ) -> None:
        self.directory = directory.absolute()
        self.detached = detached
        self.binaries = build.folder()
        self.kubeconfig = self.directory / "kubeconfig"
        self.scheduler_yaml = self.directory / "scheduler.yaml"
        self.ca = self.directory / "keys/ca.crt"
        self.ports: dict[str, int] = {}
        self._tokens: dict[str, str] = {}
        self._state = self.directory / "cluster.json"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._schedulers: dict[str, dict[str, Any]] = {DEFAULT_SCHEDULER: {}}
        self._client: httpx.Client | None = None
        if self._state.is_file():
            known = json.loads(self._state.read_text())
            self.ports, self._tokens, self._schedulers = known["ports"], known["tokens"], known["schedulers"]
        self._schedulers[DEFAULT_SCHEDULER].update(scheduler_config or {})

    # What the cluster is

    @property
    def layout(self) -> components.Layout:
        """Return where the cluster's things lie."""
        return components.Layout(self.directory, self.binaries, self.ports)

    @property
    def server(self) -> str:
        """Return the API server's URL."""
        return self.layout.url(components.APISERVER)

    @property
    def token(self) -> str:
        """Return the bearer token of an administrator (``system:masters``)."""
        return self._tokens["admin"]

    @property
    def kubectl_path(self) -> Path:
        """Return the kubectl of the same version as the cluster."""
        return self.binaries / "kubectl"

    @property
    def http(self) -> httpx.Client:
        """Return a client of the API server that carries the administrator's token; threads may share it."""
        if self._client is None:
            self._client = httpx.Client(
                base_url=self.server,
                headers={"Authorization": f"Bearer {self.token}"},
                verify=ssl.create_default_context(cafile=str(self.ca)),
                trust_env=False,  # no proxy stands between us and loopback
                timeout=60,
            )
        return self._client

    def log(self, name: str) -> Path:
        """Return the log of a process."""
        return self.directory / f"logs/{name}.log"

    def tail(self, name: str, lines: int = 25) -> str:
        """Return the last lines of a process's log."""
        try:
            text = self.log(name).read_text(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(line[:600] for line in text.splitlines()[-lines:])

    def names(self) -> list[str]:
        """Return the processes that were started and not stopped, alive or not, in the order to stop them."""
        found = [path.stem for path in (self.directory / "pids").glob("*.pid")]

        def rank(name: str) -> tuple[int, str]:
            kinds = [kind for kind in components.STOP_ORDER if name.startswith(kind)]
            return (components.STOP_ORDER.index(kinds[0]) + 1 if kinds else 0, name)

        return sorted(found, key=rank)

    def alive(self, name: str) -> bool:
        """Return whether the process runs."""
        return launch.running(self._pid_file(name)) is not None

    # Its life

    def start(self) -> Self:
        """Return the cluster once every component is ready, building the binaries first if they are missing."""
        build.build()
        for folder in (self.directory, self.directory / "logs", self.directory / "pids"):
            folder.mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2, 3):
            self._write_files(new_ports=attempt > 1)
            try:
                self._start_components()
            except BaseException as error:
                self.stop()
                # Another process took one of the ports between the choice and the use of it.
                if isinstance(error, ClusterError) and "address already in use" in str(error) and attempt < 3:
                    continue
                raise
            return self
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Kill every process of the cluster; its folder stays, and ``start`` brings the same cluster back."""
        for name in self.names():
            self.kill(name)
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Its processes

    def spawn(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        ready: Callable[[], object] | None = None,
        timeout: float = START_TIMEOUT_S,
    ) -> None:
        """Start a process that belongs to the cluster, and return when ``ready`` says so; it is killed by ``stop``.

        Ours (``anygpu serve``) is started in the same way. A process of that name that still runs is killed first.
        On Linux it dies with the thread that called this: call it from one that lives as long as the cluster does.
        """
        self.kill(name)
        basic = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.directory)}
        command = [str(part) for part in argv]
        process = launch.start(
            command,
            self.log(name),
            tether=not self.detached,
            pid_file=self._pid_file(name),
            env=basic | dict(env or {}),
        )
        self._processes[name] = process
        self.wait(f"{name} to start", lambda: self._pid_file(name).exists(), timeout=30, blame=name)
        if ready is not None:
            self.wait(f"{name} to be ready", ready, timeout=timeout, blame=name)

    def kill(self, name: str) -> None:
        """Kill a process (SIGKILL, with its children) if it runs, and return when it is gone."""
        pid_file = self._pid_file(name)
        pid, mine = launch.running(pid_file), self._processes.pop(name, None)
        if mine is not None and mine.poll() is None:
            launch.kill_group(mine.pid)
            mine.wait(30)
        elif pid is not None:
            launch.kill_group(pid)
            deadline = time.monotonic() + 30
            while launch.running(pid_file) is not None:
                if time.monotonic() > deadline:
                    raise ClusterError(f"{name} (pid {pid}) does not die")
                time.sleep(POLL_S)
        pid_file.unlink(missing_ok=True)

    def pause(self, name: str, *, resume: bool = False) -> None:
        """Freeze a process (SIGSTOP) as a paused leader is, or let it go on."""
        pid = launch.running(self._pid_file(name))
        if pid is None:
            raise ClusterError(f"{name} does not run")
        os.killpg(pid, signal.SIGCONT if resume else signal.SIGSTOP)

    def restart(self, name: str) -> None:
        """Kill a component of the control plane and return when it is ready again, on the same port."""
        starts = {
            components.ETCD: self._start_etcd,
            components.APISERVER: self._start_apiserver,
            components.CONTROLLER_MANAGER: self._start_controller_manager,
            components.KWOK: self._start_kwok,
            components.SCHEDULER: self.start_scheduler,
        }
        starts[name]()

    def start_scheduler(
        self,
        extenders: Sequence[Mapping[str, Any]] | None = None,
        *,
        name: str = DEFAULT_SCHEDULER,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Start a kube-scheduler, in place of the one of that name that runs, and return when it is ready.

        ``extenders`` None keeps those it had (an empty list takes them away); ``config`` is laid over its file,
        key by key (``{"percentageOfNodesToScore": 100}``). Another ``name`` is a second kube-scheduler beside the
        first, for pods with that ``schedulerName``.
        """
        wanted = self._schedulers.setdefault(name, {})
        wanted.update(config or {})
        if extenders is not None:
            wanted["extenders"] = [dict(extender) for extender in extenders]
        process = _scheduler_process(name)
        if process not in self.ports:
            self.ports[process] = free_port(taken=self.ports.values())
        self._save_state()
        file = self.scheduler_yaml if name == DEFAULT_SCHEDULER else self.directory / f"scheduler-{name}.yaml"
        file.write_text(yaml.safe_dump(self._scheduler_config(name), sort_keys=False))
        self.spawn(
            process,
            components.scheduler(self.layout, process, file),
            ready=lambda: self._says_ok(f"{self.layout.url(process)}/readyz"),
        )

    def stop_scheduler(self, name: str = DEFAULT_SCHEDULER) -> None:
        """Kill a kube-scheduler, as a crash would."""
        self.kill(_scheduler_process(name))

    # Talking to it

    def kubectl(
        self, *args: str | Path, input: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Return what kubectl did as the administrator; with ``check`` a failure raises with its stderr."""
        done = subprocess.run(
            [self.kubectl_path, *args],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=120,
            env={"PATH": os.defpath, "HOME": str(self.directory), "KUBECONFIG": str(self.kubeconfig)},
            check=False,
        )
        if check and done.returncode:
            said = f"{done.stdout}{done.stderr}".strip()
            raise ClusterError(f"kubectl {' '.join(map(str, args))}: exit {done.returncode}: {said}")
        return done

    def api(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        ok: Iterable[int] = (),
    ) -> dict[str, Any]:
        """Return the object that the API server answers; a status of 400 or more raises unless it is in ``ok``."""
        content = None if body is None else json.dumps(body)
        answer = self.http.request(method, path, content=content, headers={"Content-Type": content_type})
        if answer.status_code >= 400 and answer.status_code not in set(ok):
            raise ClusterError(f"{method} {path}: {answer.status_code} {answer.text[:600]}")
        found: dict[str, Any] = answer.json()
        return found

    def wait(self, what: str, check: Callable[[], T], *, timeout: float = 60, blame: str = components.SCHEDULER) -> T:
        """Return the first true answer of ``check``; on expiry raise with the tail of the log of ``blame``."""
        deadline = time.monotonic() + timeout
        while True:
            answer = check()
            if answer:
                return answer
            mine = self._processes.get(blame)
            if mine is not None and mine.poll() is not None:
                why = f"waiting for {what}: {blame} has ended (status {mine.returncode})"
            elif time.monotonic() > deadline:
                why = f"waited {timeout:g} s for {what}"
            else:
                time.sleep(POLL_S)
                continue
            raise ClusterError(f"{why}. The end of {self.log(blame)}:\n{self.tail(blame)}")

    def create_token(self, namespace: str, service_account: str, *, hours: int = 24) -> Path:
        """Return a kubeconfig with a token of the service account, which is created, its namespace too, if missing.

        The service account has the rights that RBAC gives it, none at first: bind the shipped roles to it.
        """
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self.api("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}}, ok=[409])
        self.api("POST", accounts, {"metadata": {"name": service_account}}, ok=[409])
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": hours * 3600},
        }
        token = self.api("POST", f"{accounts}/{service_account}/token", request)["status"]["token"]
        return self._write_kubeconfig(self.directory / f"{namespace}-{service_account}.kubeconfig", token, namespace)

    def add_nodes(self, wanted: Iterable[Mapping[str, Any]], *, timeout: float = 120) -> list[str]:
        """Return the names of the nodes once all are Ready; one that exists is brought to what is given.

        A node needs a name; cpu, memory and pods are filled in, and capacity is what is allocatable unless it is given.
        """
        _ = self.http  # made before the threads that share it
        ready = [nodes.creatable(node) for node in wanted]
        names = [node["metadata"]["name"] for node in ready]
        with futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(self._put_node, ready))
        waiting = set(names)

        def all_ready() -> bool:
            items = self.api("GET", "/api/v1/nodes?resourceVersion=0")["items"]
            waiting.difference_update(item["metadata"]["name"] for item in items if nodes.is_ready(item))
            return not waiting

        self.wait(f"{len(names)} nodes Ready", all_ready, timeout=timeout, blame=components.KWOK)
        return names

    def delete_nodes(self, names: Iterable[str] | None = None, *, timeout: float = 60) -> None:
        """Delete the nodes (all of them, if no name is given) and the pods on them, and return when both are gone."""
        found = self.api("GET", "/api/v1/nodes")["items"]
        gone = {node["metadata"]["name"] for node in found} if names is None else set(names)
        for name in sorted(gone):  # first, so that no owner's new pod lands there
            self.api("DELETE", f"/api/v1/nodes/{name}", ok=[404])

        def none_left() -> bool:
            items = self.api("GET", "/api/v1/pods")["items"]
            pods = [pod for pod in items if pod["spec"].get("nodeName") in gone]
            for pod in pods:
                path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
                self.api("DELETE", f"{path}?gracePeriodSeconds=0", ok=[404])
            return not pods

        self.wait("the nodes' pods to go", none_left, timeout=timeout, blame=components.APISERVER)

    # How it is made

    def _pid_file(self, name: str) -> Path:
        return self.directory / f"pids/{name}.pid"

    def _save_state(self) -> None:
        state = {"ports": self.ports, "tokens": self._tokens, "schedulers": self._schedulers}
        half = self._state.with_suffix(".partial")
        half.touch(mode=0o600)
        half.write_text(json.dumps(state, indent=1))
        half.replace(self._state)

    def _write_files(self, *, new_ports: bool) -> None:
        """Write keys, tokens, ports and kubeconfigs; what is there from an earlier start stays as it is."""
        keys.write(self.directory / "keys")
        users = {
            "admin": "system:masters",
            "system:kube-scheduler": "",  # RBAC's bootstrap roles give it exactly a scheduler's rights
        }
        if not self._tokens:
            self._tokens = {user: secrets.token_urlsafe(24) for user in users}
        if new_ports:
            self.ports.clear()
        for name in (*components.STOP_ORDER, components.ETCD_PEER):
            if name not in self.ports:
                self.ports[name] = free_port(taken=self.ports.values())
        self._save_state()
        lines = [f'{self._tokens[user]},{user},{user},"{groups}"' for user, groups in users.items()]
        (self.directory / "keys/tokens.csv").write_text("\n".join(lines) + "\n")
        self._write_kubeconfig(self.kubeconfig, self._tokens["admin"])
        self._write_kubeconfig(self.directory / "kube-scheduler.kubeconfig", self._tokens["system:kube-scheduler"])

    def _write_kubeconfig(self, path: Path, token: str, namespace: str = "default") -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.server, "certificate-authority": str(self.ca)}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "anygpu", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
            "current-context": "anygpu",
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def _scheduler_config(self, name: str) -> dict[str, Any]:
        kubeconfig = self.directory / "kube-scheduler.kubeconfig"
        config: dict[str, Any] = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": False},
            "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 5000, "burst": 5000},
            "podInitialBackoffSeconds": 1,
            "podMaxBackoffSeconds": 2,  # 10 by default: a test that waits for a retry should not wait that long
        }
        if name != DEFAULT_SCHEDULER:
            config["profiles"] = [{"schedulerName": name}]
        return config | self._schedulers[name]

    def _says_ok(self, url: str) -> bool:
        try:
            return self.http.get(url, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _start_components(self) -> None:
        starts = {
            components.ETCD: self._start_etcd,
            components.APISERVER: self._start_apiserver,
            components.CONTROLLER_MANAGER: self._start_controller_manager,
            components.KWOK: self._start_kwok,
        }
        for name, start in starts.items():
            if not self.alive(name):
                start()
        for name in list(self._schedulers):
            if not self.alive(_scheduler_process(name)):
                self.start_scheduler(name=name)

    def _start_etcd(self) -> None:
        url = self.layout.url(components.ETCD, "http")
        self.spawn(components.ETCD, components.etcd(self.layout), ready=lambda: self._says_ok(f"{url}/health"))

    def _start_apiserver(self) -> None:
        def ready() -> bool:
            # The default namespace is made by a controller of the API server, a moment after it calls itself ready.
            return self._says_ok("/readyz") and self._says_ok("/api/v1/namespaces/default")

        self.spawn(components.APISERVER, components.apiserver(self.layout), ready=ready)

    def _start_controller_manager(self) -> None:
        name = components.CONTROLLER_MANAGER
        url = self.layout.url(name)
        self.spawn(name, components.controller_manager(self.layout), ready=lambda: self._says_ok(f"{url}/healthz"))

    def _start_kwok(self) -> None:
        url = self.layout.url(components.KWOK, "http")
        own = {"KWOK_WORKDIR": f"{self.directory}/kwok"}  # else it reads the configuration of the user's own kwok
        self.spawn(
            components.KWOK, components.kwok(self.layout), env=own, ready=lambda: self._says_ok(f"{url}/healthz")
        )

    def _put_node(self, node: dict[str, Any]) -> None:
        path = f"/api/v1/nodes/{node['metadata']['name']}"
        if self.api("POST", "/api/v1/nodes", node, ok=[409])["kind"] == "Node":
            return
        merge = "application/merge-patch+json"
        self.api("PATCH", path, {key: node[key] for key in ("metadata", "spec")}, content_type=merge)
        self.api("PATCH", f"{path}/status", {"status": node["status"]}, content_type=merge)


def free_port(taken: Iterable[int] = ()) -> int:
    """Return a loopback port that nobody listens on.

    It lies below the range from which Linux serves port 0 and outgoing connections, so that nothing takes it by chance
    before it is used, or while a component is down.
    """
    dice, used = random.SystemRandom(), set(taken)
    for _ in range(200):
        port = dice.randrange(20_000, 32_000)
        if port in used:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ClusterError("no free port on 127.0.0.1 between 20000 and 32000")


def _scheduler_process(name: str) -> str:
    return components.SCHEDULER if name == DEFAULT_SCHEDULER else f"{components.SCHEDULER}-{name}"


def remove(directory: Path) -> None:
    """Remove a cluster's folder, and nothing that is not one."""
    if directory.exists() and not (directory / "cluster.json").is_file() and any(directory.iterdir()):
        raise ClusterError(f"{directory} holds no cluster; it is left alone")
    shutil.rmtree(directory, ignore_errors=True)
