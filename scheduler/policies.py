"""PlacementPolicies -> what holds for pods of a namespace: pure.

Two policies may hold for a pod: its namespace's, named `default`, and the cluster's, `default` in anygpu-system.

- What a pod may have (vendors, SKUs, the price of a device): both policies hold together, and the pod's annotations can
  only narrow it further. So of vendors and SKUs the intersection is left, and of the prices that the pod, the namespace
  and the cluster cap the lowest counts.
- What holds where a pod says nothing (objective or weights, binding): the pod's annotation, else its namespace's
  policy, else the cluster's, else anygpu's own (pack, early). An objective and weights are one choice: who states
  either has made it. A default binding is not for pods that cannot have it: those that name a GPU resource, their node,
  or (late) another scheduler are bound early.

A policy is applied when a pod is admitted, and the pod's decision records it: for that pod it stays as it was, whatever
becomes of the policies, since the pod can no longer be changed.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from capability_db import resources
from capability_db.sku import Frozen, VendorName

Objective = Literal["pack", "cost", "speed", "energy"]
Binding = Literal["early", "late", "claim"]

MOST_NAMED = 6
"""SKUs that one text names."""


class Rule(Frozen):
    """What one policy lets pods have."""

    policy: str
    """`namespace/name`."""
    vendors: tuple[VendorName, ...] = ()
    """Empty: all."""
    skus: tuple[str, ...] = ()
    """Empty: all."""
    not_skus: tuple[str, ...] = ()
    max_price_usd_hour: float | None = None

    @property
    def who(self) -> str:
        """The policy as texts name it."""
        return f"PlacementPolicy {self.policy}"

    def forbids_vendor(self, vendor: VendorName) -> str | None:
        """Why a vendor is not allowed; None: it is."""
        if not self.vendors or vendor in self.vendors:
            return None
        return f"{vendor}: not allowed by {self.who}, which allows {', '.join(self.vendors)}"

    def forbids_sku(self, sku_id: str) -> str | None:
        """Why a SKU is not allowed; None: it is."""
        if sku_id in self.not_skus:
            return f"{sku_id}: forbidden by {self.who}"
        if self.skus and sku_id not in self.skus:
            return f"{sku_id}: not allowed by {self.who}, which allows {_named(self.skus)}"
        return None

    def forbids_price(self, name: str, price_usd_hour: float | None) -> str | None:
        """Why what a device costs, in USD an hour, is not allowed; None: it is."""
        most = self.max_price_usd_hour
        if most is None or (price_usd_hour is not None and price_usd_hour <= most):
            return None
        if price_usd_hour is None:
            return f"{name}: no price stated, at most {most:g} USD an hour allowed by {self.who}"
        return f"{name}: {price_usd_hour:g} USD an hour, at most {most:g} allowed by {self.who}"


class Effective(Frozen):
    """What holds for the pods of a namespace; a field that no policy gives is empty, and so is its `…_from`."""

    rules: tuple[Rule, ...] = ()
    """Those that restrict anything, the namespace's first; all hold."""
    objective: Objective | None = None
    weights: resources.Weights | None = None
    order_from: str | None = None
    """The policy that gives objective or weights."""
    binding: Binding | None = None
    binding_from: str | None = None

    def without_rules(self) -> "Effective":
        """The same with nothing forbidden."""
        return self.model_copy(update={"rules": ()})

    def allows(self, vendor: VendorName, sku_id: str) -> bool:
        """Whether all rules let pods have a SKU, prices aside."""
        return not any(rule.forbids_vendor(vendor) or rule.forbids_sku(sku_id) for rule in self.rules)


NONE = Effective()
"""No policy."""


def effective(namespace: str, policies: Mapping[str, resources.PlacementPolicySpec]) -> Effective:
    """What holds in a namespace, of the policies by namespace."""
    names = dict.fromkeys([namespace, resources.SYSTEM_NAMESPACE])
    found = [(f"{name}/{resources.DEFAULT}", policies[name]) for name in names if name in policies]
    order = next(((name, spec) for name, spec in found if spec.objective or spec.weights), None)
    binding = next(((name, spec.binding) for name, spec in found if spec.binding), None)
    rules = (_rule(name, spec) for name, spec in found)
    return Effective(
        rules=tuple(rule for rule in rules if rule != Rule(policy=rule.policy)),
        objective=order[1].objective if order else None,
        weights=order[1].weights if order else None,
        order_from=order[0] if order else None,
        binding=binding[1] if binding else None,
        binding_from=binding[0] if binding else None,
    )


def _rule(name: str, spec: resources.PlacementPolicySpec) -> Rule:
    return Rule(
        policy=name,
        vendors=spec.vendors,
        skus=spec.skus,
        not_skus=spec.not_skus,
        max_price_usd_hour=spec.max_price_usd_hour,
    )


def in_words(given: Effective, stated: Iterable[str]) -> list[str]:
    """What the policies say for a pod that states some annotation keys (without prefix), a line for each thing."""
    return list(_lines(given, {*stated}))


def _lines(given: Effective, stated: set[str]) -> Iterator[str]:
    for rule in given.rules:
        if rule.vendors:
            yield f"vendors {', '.join(rule.vendors)}: from {rule.who}"
        if rule.skus:
            yield f"SKUs {_named(rule.skus)}: from {rule.who}"
        if rule.not_skus:
            yield f"no {_named(rule.not_skus)}: from {rule.who}"
        if rule.max_price_usd_hour is not None:
            yield f"at most {rule.max_price_usd_hour:g} USD an hour: from {rule.who}"
    own = " (the pod states its own)"
    if given.order_from:
        what = f"objective {given.objective}" if given.objective else f"weights {weights_in_words(given.weights)}"
        yield f"{what}: from PlacementPolicy {given.order_from}{own if 'objective' in stated else ''}"
    if given.binding:
        line = f"binding {given.binding}: from PlacementPolicy {given.binding_from}"
        yield line + (own if "binding" in stated else "")


def weights_in_words(weights: resources.Weights | None) -> str:
    """The weights that are not 0: `cost 2, speed 1`."""
    return ", ".join(f"{name} {figure:g}" for name, figure in weights or () if figure)


def who_can_change(rules: Iterable[Rule]) -> str:
    """Whom to ask, where policies stand in the way."""
    names = " or ".join(dict.fromkeys(rule.who for rule in rules))
    return f"whoever may edit {names} can change that"


def _named(skus: tuple[str, ...]) -> str:
    more = f" and {len(skus) - MOST_NAMED} more" if len(skus) > MOST_NAMED else ""
    return f"{', '.join(skus[:MOST_NAMED])}{more}"
