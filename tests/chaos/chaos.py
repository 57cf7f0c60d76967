#!/usr/bin/env python3
"""Late and claim binding under failure, at capacity, on a real control plane: nothing promised twice, no pod lost.

    python tests/chaos/chaos.py [--pods 500] [--claims 300] [--nodes 100] [--phases late,claim] [--seed N]

Progress goes to stderr. The last line, on stdout, is one JSON object; the exit status is 0 if no device was promised
twice, no pod lost, no image wrong, the service's own audit found no drift, and every device ended used.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

for folder in ("controlplane", "support"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

import build  # noqa: E402
import cluster  # noqa: E402
import faults  # noqa: E402
import httpx  # noqa: E402
import install  # noqa: E402
import oci  # noqa: E402
import oracle  # noqa: E402
import plan  # noqa: E402
import registry  # noqa: E402

Json = dict[str, Any]

NAMESPACE = "chaos"
KILLS = (0.08, 0.25, 0.45, 0.65, 0.85)
"""After this share of the pods is bound the service is killed, in the middle of a bind."""
RESTARTS = (0.35, 0.75)
"""And the scheduler restarted."""
LEAVING = 0.55
"""And the passing pods deleted."""
PATIENCE_SECONDS = 150.0
"""How long nothing may happen before what is not bound counts as lost: longer than any reservation or back-off."""
BREAK_SECONDS = 0.02
AUDIT_SECONDS = 100.0
"""The service audits itself once a minute."""


class Phase:
    """One kind of pods on nodes of their own, with everything going wrong that may."""

    def __init__(
        self,
        running: cluster.Cluster,
        proxy: faults.Proxy,
        planned: plan.Plan,
        images: dict[str, str],
        restart_scheduler: Callable[[], None],
        dice: random.Random,
    ) -> None:
        self._running, self._proxy, self._plan, self._dice = running, proxy, planned, dice
        self._restart_scheduler = restart_scheduler
        self._judge = oracle.Oracle(running.http, f"{install.extender_url(running)}/metrics", planned.vendors, images)
        self._staying = [each for each in planned.workloads if each.kind != "passing"]
        self._gave_up = threading.Event()
        self.kills = 0
        self.pods = sum(each.pods for each in self._staying)
        self.lost = self.unused = 0

    @property
    def findings(self) -> oracle.Findings:
        """What the oracle saw."""
        return self._judge.findings

    def run(self) -> None:
        """Bring everything in, break what there is, and return when all pods are bound or nothing happens any more."""
        build.say(f"{len(self._plan.nodes)} nodes, {self.pods} pods")
        self._running.add_nodes(self._plan.nodes)
        for path, document in self._plan.objects:
            self._running.api("POST", path, document)
        self._judge.start()
        with futures.ThreadPoolExecutor(1) as pool:
            submitting = pool.submit(self._submit)
            try:
                self._break_things(submitting)
                self._await_audit()
            finally:
                self._gave_up.set()
                self._judge.stop()
        submitting.result()
        self._conclude()

    # What comes in

    def _submit(self) -> None:
        """Create the workloads, wave after wave."""
        for wave in sorted({each.wave for each in self._plan.workloads}):
            chosen = [each for each in self._plan.workloads if each.wave == wave]
            self._dice.shuffle(chosen)
            with futures.ThreadPoolExecutor(4) as pool:
                for done in [pool.submit(self._create, each) for each in chosen]:
                    done.result()
            # The next wave may take the room that these need, of one vendor; in pool d anybody can take any.
            tied = [each for each in chosen if each.kind in ("early", "plain") and each.pool != "d"]
            while self._missing(tied) and not self._gave_up.wait(0.1):
                pass

    def _create(self, workload: plan.Workload) -> None:
        while not self._gave_up.is_set():
            try:
                answer = self._running.http.post(workload.path, json=workload.document)
            except httpx.TransportError:
                continue
            if answer.status_code in (httpx.codes.CREATED, httpx.codes.CONFLICT):  # a conflict: it came in after all
                return
            if answer.status_code not in (429, 500, 503, 504):  # the webhook is dead, or has not read the cluster
                raise RuntimeError(f"{workload.name}: {answer.status_code} {answer.text[:600]}")
            self._gave_up.wait(0.2)

    # What breaks

    def _break_things(self, submitting: futures.Future[None]) -> None:
        ahead: list[tuple[float, Callable[[], None]]] = [
            *((share, self._kill_service) for share in KILLS),
            *((share, self._restart_scheduler) for share in RESTARTS),
            (LEAVING, self._let_pass),
        ]
        ahead.sort(key=lambda item: item[0])
        seen, since = -1, time.monotonic()
        while True:
            bound = self.pods - self._missing(self._staying)
            if bound != seen:
                seen, since = bound, time.monotonic()
            if ahead and bound >= ahead[0][0] * self.pods:
                _, action = ahead.pop(0)
                action()
                build.say(f"{bound} of {self.pods} pods bound; {self._running_total()}")
                since = time.monotonic()
            elif submitting.done() and (submitting.exception() or bound == self.pods):
                return
            elif time.monotonic() - since > PATIENCE_SECONDS:
                build.say(f"nothing happened for {PATIENCE_SECONDS:g} s")
                return
            time.sleep(BREAK_SECONDS)

    def _running_total(self) -> str:
        found = self.findings
        return f"promised twice {found.double_promised}, wrong images {len(found.wrong_image)}"

    def _await_audit(self) -> None:
        """Return when the service has compared its node table with all that happened; meanwhile the oracle looks on."""
        deadline = time.monotonic() + AUDIT_SECONDS
        while self._judge.audited is False and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)

    def _kill_service(self) -> None:
        """Kill it in the middle of a bind, if one comes, and start it again."""
        deadline = time.monotonic() + 2
        while not self._proxy.under_way("/bind") and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(self._dice.uniform(0, 0.02))
        self._running.kill(install.SERVICE)
        self.kills += 1
        build.say(f"killed the service ({self.kills})")
        start_service(self._running)

    def _let_pass(self) -> None:
        for workload in self._plan.workloads:
            if workload.kind == "passing":
                self._running.api("DELETE", f"{workload.path}/{workload.name}?gracePeriodSeconds=0")
        build.say("the passing pods are gone")

    # What came of it

    def _missing(self, workloads: Sequence[plan.Workload]) -> int:
        bound = self._judge.bound()
        return sum(max(0, each.pods - bound[each.name]) for each in workloads)

    def _conclude(self) -> None:
        unused = self._judge.unused()
        without = self._judge.without_device()
        self.lost, self.unused = self._missing(self._staying) + len(without), sum(unused.values())
        build.say(
            f"{self.lost} pods lost, {self.unused} devices unused, {self._running_total()}, "
            f"drift {self.findings.drift}; seen: {self._judge.events} writes, {self._judge.samples} lists"
        )
        stories = [*self.findings.stories, *(f"unused: {key}: {count}" for key, count in unused.items())]
        stories += [f"bound without a device: {text}" for text in without.values()]
        for story in stories[:60]:
            build.say(f"  {story}")
        for workload in [each for each in self._staying if self._missing([each])][:10]:
            build.say(f"  lost: {workload.name}: {self._why(workload)}")
        if self._missing(self._staying):
            for each in self._running.api("GET", f"/api/v1/namespaces/{install.NAMESPACE}/configmaps")["items"]:
                if each.get("data", {}).get("entries", "[]") != "[]":
                    build.say(f"  for whoever looks into it: {each['metadata']['name']}: {each['data']['entries']}")

    def _why(self, workload: plan.Workload) -> str:
        found = self._running.api("GET", f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3D{workload.name}")
        waiting = [pod for pod in found["items"] if not pod["spec"].get("nodeName")]
        conditions = [each for pod in waiting for each in pod["status"].get("conditions", [])]
        texts = [str(each.get("message", ""))[:300] for each in conditions if each["type"] == "PodScheduled"]
        return texts[0] if texts else f"{len(waiting)} wait, {len(found['items'])} there"


def start_service(running: cluster.Cluster) -> None:
    """Start the service, or start it again, with all bindings on."""
    install.start_service(running, bindings=install.ALL_BINDINGS)


def push_images(images: oci.OciRegistry) -> tuple[str, dict[str, str]]:
    """Push a variant for each vendor; return the logical image, and which digest is whose."""
    digests = {vendor: images.push("team/app", f"v1-{vendor}", {"V": vendor}) for vendor in ("nvidia", "amd")}
    return f"{images.host}/team/app:v1", {f"{images.host}/team/app@{digest}": v for v, digest in digests.items()}


@contextlib.contextmanager
def control_plane(seed: int, failures: float, folder: Path) -> Iterator[tuple[cluster.Cluster, faults.Proxy]]:
    """A control plane with anygpu, whose schedulers reach it through a proxy that loses this share of the binds."""
    with cluster.Cluster(folder) as running:
        url = install.install(running, bindings=install.ALL_BINDINGS, scheduler=False)
        with faults.Proxy(url, seed=seed) as proxy:
            proxy.fail("POST", "^/bind$", before=failures / 2, after=failures / 2)
            running.start_scheduler(install.extenders(proxy.url))
            install.start_scheduler(running, proxy.url)
            yield running, proxy


def late(running: cluster.Cluster, proxy: faults.Proxy, logical: str, images: dict[str, str], asked: Any) -> Phase:
    """Late pods beside early and plain ones, which another scheduler binds; it is anygpu-scheduler that restarts."""
    planned = plan.late(asked.pods, asked.nodes, logical, NAMESPACE, asked.seed)
    restart = functools.partial(install.start_scheduler, running, proxy.url)
    return Phase(running, proxy, planned, images, restart, random.Random(asked.seed))


def claim(running: cluster.Cluster, proxy: faults.Proxy, logical: str, images: dict[str, str], asked: Any) -> Phase:
    """Claim pods beside pods with claims of their own; one scheduler has them all, and it is it that restarts."""
    planned = plan.claims(asked.claims, asked.nodes, logical, NAMESPACE, asked.seed)
    return Phase(running, proxy, planned, images, running.start_scheduler, random.Random(asked.seed))


PHASES: dict[str, Callable[..., Phase]] = {"late": late, "claim": claim}


def clear(running: cluster.Cluster) -> None:
    """Take the pods and nodes of a phase away, and return when they are gone."""
    everything = ["deployments,replicasets,pods", "--all", "-n", NAMESPACE]
    running.kubectl("delete", *everything, "--force", "--grace-period=0", "--wait=false")
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    running.wait("the pods to go", lambda: not running.api("GET", pods)["items"], timeout=120)
    running.delete_nodes()
    running.kubectl("delete", "resourceslices,resourceclaims", "--all", "-n", NAMESPACE)


def run(asked: argparse.Namespace, folder: Path) -> bool:
    """Run the phases and print the result; return whether all was well."""
    began = time.monotonic()
    done: list[Phase] = []
    images = oci.OciRegistry(folder / "registry", registry.fetch())
    images.start()
    try:
        logical, table = push_images(images)
        with control_plane(asked.seed, asked.failures, folder / "cluster") as (running, proxy):
            running.api("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
            for name in asked.phases:
                build.say(f"--- {name}")
                if done:
                    clear(running)
                done.append(PHASES[name](running, proxy, logical, table, asked))
                done[-1].run()
            failures = proxy.failed
    finally:
        images.close()
    drifts = [phase.findings.drift for phase in done]
    drift = None if None in drifts else max(each for each in drifts if each is not None)
    result = {
        "pods": sum(phase.pods for phase in done),
        "double_promised": sum(phase.findings.double_promised for phase in done),
        "lost": sum(phase.lost for phase in done),
        "wrong_image": sum(len(phase.findings.wrong_image) for phase in done),
        "audit_drift": drift,
        "kills": sum(phase.kills for phase in done),
        "bind_failures": failures,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(result), flush=True)
    wrong = [result[key] for key in ("double_promised", "lost", "wrong_image")]
    return not any(wrong) and drift == 0 and not any(phase.unused for phase in done)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status: 0 all was well, 1 not, 2 bad usage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pods", type=int, default=500, help="late pods (default: 500)")
    parser.add_argument("--claims", type=int, help="claim pods (default: 3 for 5 late ones)")
    parser.add_argument("--nodes", type=int, help="nodes, in each phase (default: 100, fewer for fewer pods)")
    parser.add_argument("--failures", type=float, default=0.05, help="share of binds that fail (default: 0.05)")
    parser.add_argument("--phases", default=",".join(PHASES), help=f"which of {','.join(PHASES)} (default: all)")
    parser.add_argument("--seed", type=int, default=None, help="of everything random (default: another each time)")
    parser.add_argument("--dir", type=Path, help="keep everything in this folder, logs too (default: a temporary one)")
    asked = parser.parse_args(argv)
    asked.claims = asked.pods * 3 // 5 if asked.claims is None else asked.claims
    asked.nodes = min(100, asked.pods // 5 + 4) if asked.nodes is None else asked.nodes
    asked.phases = asked.phases.split(",")
    unknown = [name for name in asked.phases if name not in PHASES]
    if unknown:
        parser.error(f"--phases: {unknown[0]!r} is not one of {', '.join(PHASES)}")
    try:  # what cannot be planned is said before anything is started
        plan.late(asked.pods, asked.nodes, "image", NAMESPACE, 0)
        plan.claims(asked.claims, asked.nodes, "image", NAMESPACE, 0)
    except ValueError as error:
        parser.error(f"--pods {asked.pods} --claims {asked.claims} --nodes {asked.nodes}: {error}")
    if asked.seed is None:
        asked.seed = random.SystemRandom().randrange(10**6)
    build.say(f"seed {asked.seed}")
    folder = asked.dir or Path(tempfile.mkdtemp(prefix="anygpu-chaos-"))
    well = False
    try:
        well = run(asked, folder)
    except (build.UnavailableError, cluster.ClusterError, httpx.HTTPError, ValueError) as error:
        build.say(str(error))
    finally:
        if asked.dir is None and well:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            build.say(f"logs: {folder / 'cluster/logs'}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
