"""PodDisruptionBudgets as the eviction API reads them: which pods they guard, and how many of these may go now."""

from collections.abc import Iterable

import msgspec

from scheduler import kube

COLLECTION = "/apis/policy/v1/poddisruptionbudgets"


class BudgetSpec(kube.Base, frozen=True):
    """What of a budget's spec matters."""

    selector: kube.LabelSelector | None = None


class BudgetStatus(kube.Base, frozen=True):
    """What of a budget's status matters; the disruption controller keeps it."""

    disruptions_allowed: int = 0


class Budget(kube.Base, frozen=True):
    """A PodDisruptionBudget."""

    metadata: kube.Metadata
    spec: BudgetSpec = BudgetSpec()
    status: BudgetStatus = BudgetStatus()

    def guards(self, pod: kube.Pod) -> bool:
        """Whether the budget is about the pod (kubernetes pkg/registry/core/pod/storage/eviction.go).

        As in policy/v1 an empty selector selects every pod of the namespace, none selects none.
        """
        return (self.metadata.namespace or "default") == (pod.metadata.namespace or "default") and kube.selector_holds(
            self.spec.selector, pod.labels
        )


class _Budgets(msgspec.Struct):
    items: list[Budget] | None = None


_decoder = msgspec.json.Decoder(_Budgets)


def read(body: bytes) -> "Budgets":
    """Every budget of a list; raises msgspec.DecodeError."""
    return Budgets(_decoder.decode(body).items or ())


class Budgets:
    """All budgets, found by the pods that they guard."""

    def __init__(self, budgets: Iterable[Budget] = ()) -> None:
        self._in: dict[str, list[Budget]] = {}
        for budget in budgets:
            self._in.setdefault(budget.metadata.namespace or "default", []).append(budget)

    def over(self, pod: kube.Pod) -> list[Budget]:
        """The budgets that guard a pod."""
        here = self._in.get(pod.metadata.namespace or "default")
        return [budget for budget in here if budget.guards(pod)] if here else []
