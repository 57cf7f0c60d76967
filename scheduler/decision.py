"""The decision: what a pod was given and why, as the `anygpu.io/decision` annotation records it."""

from collections.abc import Mapping
from typing import Annotated

import pydantic
from pydantic import Field

from capability_db.sku import Frozen, VendorName
from scheduler import needs as needs_
from scheduler import policies

SCHEMA_ID = "https://anygpu.io/schemas/decision.v1.json"


class Rejection(Frozen):
    """Why a group of candidates was passed over."""

    what: str
    """A SKU, a partition of one, or a vendor."""
    nodes: int
    """Nodes that this reason rules out."""
    reason: str


class Alternative(Frozen):
    """One way in which a late or claim pod may be bound."""

    resource: str
    """The device-plugin resource that the node must offer; for claim the DRA driver that allocates."""
    vendor: VendorName
    skus: tuple[str, ...]
    """The SKUs on which the images run."""
    images: dict[str, str]
    """Container -> image."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment that differs by vendor; containers read it from annotations of the pod."""


class Decision(Frozen):
    """What one pod was given, and why. The annotation's JSON; fields are only ever added.

    For late and claim pods vendor, resource, SKU, node and images are what is expected, as the cluster was at
    admission, until the pod is bound; then they are what it was given.
    """

    id: Annotated[str, Field(min_length=8, max_length=64)]
    """Names this decision; no two decisions share one."""
    binding: needs_.Binding = "early"
    vendor: VendorName
    resource: str
    """The device-plugin resource injected, or the one the pod already asked."""
    count: Annotated[int, Field(ge=1)]
    container: str
    """The container that gets the devices."""
    sku: str | None
    """The SKU on the expected node, or the one preferred when one comes free."""
    skus: tuple[str, ...]
    """Every SKU that the pod may land on."""
    node: str | None
    """Where the pod is expected to land, as the cluster was at admission; None: it waits."""
    images: dict[str, str]
    """Container -> image it runs, for the containers whose image was chosen."""
    reason: str
    kept: tuple[str, ...] = ()
    """What the pod itself says and anygpu left as it is."""
    rejected: tuple[Rejection, ...] = ()
    injected: dict[str, int] = Field(default_factory=dict)
    """What was added to the container's resources; ResourceQuota charges each of these names."""
    alternatives: tuple[Alternative, ...] = ()
    """For late and claim, until the pod is bound: what it may be given, the best first."""
    policy: policies.Effective | None = None
    """What PlacementPolicies said when it was admitted, which stays so for the pod; None: there were none."""

    @property
    def waits(self) -> bool:
        """Whether nothing was free at admission."""
        return self.node is None


_DECISION = pydantic.TypeAdapter(Decision)


def read(annotations: Mapping[str, str]) -> Decision | None:
    """The decision recorded on a pod; None where there is none or it is not one of ours."""
    text = annotations.get(needs_.DECISION)
    if text is None:
        return None
    try:
        return _DECISION.validate_json(text, strict=True)
    except pydantic.ValidationError:
        return None


def schema() -> dict[str, object]:
    """The JSON Schema of the annotation."""
    return {"$id": SCHEMA_ID, "$schema": "https://json-schema.org/draft/2020-12/schema", **_DECISION.json_schema()}
