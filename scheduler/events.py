"""Events that tell an object's owner what anygpu did, as events.k8s.io/v1 has them; its name makes each one once."""

import datetime
from typing import Any

from scheduler import kube

Json = dict[str, Any]

MAX_NAME = 253
MAX_NOTE = 1000


def event(
    pod: kube.Pod,
    name: str,
    *,
    by: str,
    action: str,
    reason: str,
    note: str,
    now: float,
    warning: bool = False,
    related: Json | None = None,
) -> Json:
    """An event about a pod; `by` is the part of anygpu that reports it, `now` in unix seconds."""
    about = of_pod(pod)
    found = on(about, name, by=by, action=action, reason=reason, note=note, now=now, warning=warning)
    return found | ({"related": related} if related else {})


def on(
    about: Json,
    name: str,
    *,
    by: str,
    action: str,
    reason: str,
    note: str,
    now: float,
    warning: bool = False,
) -> Json:
    """An event about the object of a reference; one that is in no namespace has its events in `default`."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about.get("namespace") or "default"},
        "eventTime": datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"anygpu.io/{by}",
        "reportingInstance": "anygpu",
        "action": action,
        "reason": reason,
        "type": "Warning" if warning else "Normal",
        "note": note[:MAX_NOTE],
        "regarding": about,
    }


def of_pod(pod: kube.Pod) -> Json:
    """The reference to a pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": pod.metadata.name,
        "namespace": pod.metadata.namespace or "default",
        "uid": pod.metadata.uid,
    }


def of_owner(owner: kube.OwnerReference, namespace: str | None) -> Json:
    """The reference to a pod's owner."""
    return {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "namespace": namespace or "default",
        "uid": owner.uid,
    }


def name(object_name: str, *what: str) -> str:
    """`<object>.<what>…`, the object's name cut where names end."""
    suffix = "".join(f".{each}" for each in what)
    return f"{object_name[: MAX_NAME - len(suffix)].rstrip('-.')}{suffix}"


def collection(namespace: str | None) -> str:
    """The API path of a namespace's events."""
    return f"/apis/events.k8s.io/v1/namespaces/{namespace or 'default'}/events"
