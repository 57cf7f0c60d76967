"""`anygpu explain`: why a pod is where it is, or what would let it run."""

from typing import Annotated

import typer

from scheduler import errors, explain, offers
from scheduler.cli import common


def command(
    pod: Annotated[str, typer.Argument(metavar="[NAMESPACE/]POD", help="a pod of the cluster or of the snapshot")],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="the pod's namespace")] = "default",
    cluster: common.ClusterOption = None,
    output: common.OutputOption = common.Output.table,
) -> None:
    """Why a pod is where it is, or why it waits and what would let it run.

    Exit status: 0 it has a node, 1 it waits, 2 no such pod, 3 cluster unreachable.

    Examples:

      anygpu explain llm-server-0

      anygpu explain team-a/llm-server-0 -o json
    """
    space, _, name = pod.rpartition("/")
    space = space or namespace
    fleet = common.load_fleet(cluster)
    found = fleet.pod(space, name)
    if found is None:
        where = f"snapshot {cluster}" if cluster else "the cluster"
        raise errors.InvalidInput(f"pod {space}/{name}: not found in {where} (finished pods are not kept)")
    answer = explain.explain(found, fleet)
    if output is not common.Output.table:
        common.emit(answer.as_json(), output)
    else:
        _print(answer)
    raise typer.Exit(0 if answer.node else 1)


def _print(answer: explain.Explanation) -> None:
    common.say(f"{answer.pod} {answer.summary}")
    if answer.problem:
        common.say(f"problem: {answer.problem}")
    if answer.advice:
        common.say(f"advice:  {answer.advice}")
    for line in answer.policy:
        common.say(f"policy:  {line}")
    if answer.changes:
        common.say(f"a node would fit with: {' or '.join(answer.changes)}")
    if answer.scheduler_says:
        common.say(f"kube-scheduler says: {answer.scheduler_says}")
    if answer.decision:
        made = answer.decision
        when = "bound" if answer.node and made.binding != "early" else "decided at admission"
        common.say(f"{when}: {made.reason}")
        for kept in made.kept:
            common.say(f"kept: {kept}")
    if answer.verdicts and not answer.node:
        common.say("")
        common.table(("NODES", "REASON"), ((count, reason) for reason, count in offers.summary(answer.verdicts)))
    fitting = [verdict.name for verdict in answer.verdicts if verdict.fits]
    if fitting:
        common.say(f"\nnodes that fit now: {', '.join(fitting[:10])}{' …' if len(fitting) > 10 else ''}")
