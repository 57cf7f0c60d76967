"""The apiserver's part in leader election, in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from scheduler import kubeapi

Json = dict[str, Any]


class LeaseApi:
    """One Lease under compare-and-swap; `before` and `after` run around each call, and may raise or take time."""

    def __init__(self) -> None:
        self.lease: Json | None = None
        self.version = 0
        self.before: Callable[[str], None] = lambda _: None
        self.after: Callable[[str], None] = lambda _: None

    def get_json(self, path: str) -> Json:
        self.before("GET")
        if self.lease is None:
            raise kubeapi.ApiError(404, "not found")
        found = copy.deepcopy(self.lease)
        self.after("GET")
        return found

    def post(self, path: str, body: Json) -> Json:
        self.before("POST")
        if self.lease is not None:
            raise kubeapi.ApiError(409, "already exists")
        return self._write("POST", body)

    def put(self, path: str, body: Json) -> Json:
        self.before("PUT")
        if self.lease is None:
            raise kubeapi.ApiError(404, "not found")
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise kubeapi.ApiError(409, "the object has been modified")
        return self._write("PUT", body)

    @property
    def holder(self) -> str | None:
        return self.lease["spec"].get("holderIdentity") if self.lease else None

    def _write(self, call: str, body: Json) -> Json:
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        self.after(call)
        return copy.deepcopy(self.lease)
