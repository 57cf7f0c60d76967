"""The Kubernetes API over the official client's transport: raw bytes in and out, a deadline on every call."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import urllib3
from kubernetes import client, config
from kubernetes.client import exceptions

from scheduler import errors

TIMEOUT_SECONDS = (5.0, 20.0)
"""Connect, read."""


PatchKind = Literal["merge", "strategic"]


class ApiError(Exception):
    """The apiserver answered with an error status."""

    def __init__(self, status: int, body: str) -> None:
        self.status = status
        # A payload can be large and is not ours: keep it out of logs.
        super().__init__(f"HTTP {status}: {body[:256]}")


class Api:
    """One connection pool to one apiserver; safe to use from several threads."""

    def __init__(self, api_client: client.ApiClient) -> None:
        self._client = api_client

    @property
    def server(self) -> str:
        """The apiserver's URL."""
        return str(self._client.configuration.host)

    def get(
        self, path: str, query: Mapping[str, str], timeout: tuple[float, float] = TIMEOUT_SECONDS
    ) -> urllib3.BaseHTTPResponse:
        """The open response to a GET; raises ApiError, and urllib3's errors where nobody answers."""
        return self._call("GET", path, list(query.items()), {"Accept": "application/json"}, None, timeout)

    def patch(self, path: str, body: Mapping[str, Any], kind: PatchKind = "merge") -> Any:
        """The object after a JSON merge or strategic merge patch; raises as `get` does.

        `metadata.uid` and `metadata.resourceVersion` in the patch are preconditions: where they do not hold, 409.
        """
        return self._write(
            "PATCH", path, body, f"application/{'' if kind == 'merge' else 'strategic-'}merge-patch+json"
        )

    def apply(self, path: str, body: Mapping[str, Any], manager: str) -> Any:
        """The object after a server-side apply by a field manager, which takes fields over; raises as `get` does.

        Fields that the manager applied before and leaves out now are removed.
        """
        return self._write(
            "PATCH", path, body, "application/apply-patch+yaml", [("fieldManager", manager), ("force", "true")]
        )

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the apiserver answers to a creation; raises as `get` does."""
        return self._write("POST", path, body)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """The object as replaced under its `metadata.resourceVersion`; raises as `get` does."""
        return self._write("PUT", path, body)

    def delete(self, path: str, uid: str, resource_version: str | None = None) -> None:
        """Delete the object of this uid (and of this version), else 409; raises as `get` does."""
        wanted = {"uid": uid} | ({"resourceVersion": resource_version} if resource_version else {})
        self._write("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": wanted})

    def _write(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any],
        content_type: str = "application/json",
        query: Sequence[tuple[str, str]] = (),
    ) -> Any:
        # Read to the end, or the connection is spoilt.
        headers = {"Content-Type": content_type}
        return json.loads(self._call(method, path, [*query], headers, body, TIMEOUT_SECONDS).data)

    def get_json(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """The parsed answer to a GET; raises as `get` does."""
        return json.loads(self.get(path, query or {}).data)

    def _call(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        headers: dict[str, str],
        body: Mapping[str, Any] | None,
        timeout: tuple[float, float],
    ) -> urllib3.BaseHTTPResponse:
        request = self._client.param_serialize(
            method, path, query_params=query, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            answer: urllib3.BaseHTTPResponse = self._client.call_api(*request, _request_timeout=timeout).response
        except exceptions.ApiException as error:
            raise ApiError(error.status or 0, str(error.body or error.reason or "")) from error
        if not 200 <= answer.status < 300:
            raise ApiError(answer.status, answer.data.decode(errors="replace"))
        return answer


def connect() -> Api:
    """The API of KUBECONFIG, else of the cluster that this runs in, else of ~/.kube/config.

    Raises NoCluster where there is none of these.
    """
    try:
        if "KUBECONFIG" not in os.environ:
            try:
                config.load_incluster_config()  # type: ignore[no-untyped-call]
                return Api(client.ApiClient())
            except config.ConfigException:
                pass
        return Api(config.new_client_from_config())  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        raise errors.NoCluster(
            f"no cluster: {str(error).rstrip('.')}; set KUBECONFIG, or give a snapshot with --cluster FILE"
        ) from error
