"""Where the node agent's status goes: the NodeGPUs of its node, by server-side apply."""

from typing import Any, Final

import pydantic

from capability_db import resources
from capability_db.agent import loop
from scheduler import kubeapi, watch

KIND: Final = resources.KINDS["NodeGPUs"]
MANAGER: Final = "anygpu-agent"
NOT_FOUND, CONFLICT = 404, 409


class ApiSink:
    """The NodeGPUs of one node; implements loop.Sink."""

    def __init__(self, api: kubeapi.Api, node: str) -> None:
        self._api, self._node = api, node
        self._path = f"{KIND.path}/{node}"

    def last(self) -> resources.NodeGPUsStatus | None:
        """What the object says now; None where there is none, or what it says cannot be read here."""
        try:
            found = self._api.get_json(self._path)
            return resources.NodeGPUsStatus.model_validate(found.get("status") or {})
        except pydantic.ValidationError:
            return None
        except watch.BROKEN as error:
            if _status(error) == NOT_FOUND:
                return None
            raise loop.NotTakenError(str(error)) from error

    def write(self, status: resources.NodeGPUsStatus) -> None:
        """Put the status into the object, which is made first where there is none; raises NotTakenError."""
        said = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        body = resources.document(KIND.name, self._node, status=said)
        try:
            try:
                self._api.apply(f"{self._path}/status", body, MANAGER)
            except kubeapi.ApiError as error:
                if error.status != NOT_FOUND:
                    raise
                self._create()
                self._api.apply(f"{self._path}/status", body, MANAGER)
        except watch.BROKEN as error:
            raise loop.NotTakenError(str(error)) from error

    def _create(self) -> None:
        """Make the object, the node's own: it goes when the node goes."""
        try:
            node = self._api.get_json(f"/api/v1/nodes/{self._node}")
        except kubeapi.ApiError as error:
            if error.status == NOT_FOUND:
                raise loop.NotTakenError(f"the cluster has no node {self._node!r}; --node-name says which") from error
            raise
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": node["metadata"]["uid"]}
        made: dict[str, Any] = resources.document(KIND.name, self._node)
        made["metadata"]["ownerReferences"] = [owner]
        try:
            self._api.post(KIND.path, made)
        except kubeapi.ApiError as error:
            if error.status == CONFLICT:
                return  # somebody was faster
            if error.status == NOT_FOUND:
                raise loop.NotTakenError(
                    f"the cluster does not know {KIND.plural}.{resources.GROUP}; kubectl apply -f manifests/crds.yaml"
                ) from error
            raise


def _status(error: Exception) -> int | None:
    return error.status if isinstance(error, kubeapi.ApiError) else None
