"""List and watch one kind of object on raw bytes, without gaps, for as long as the process lives.

A reflector lists (in pages), says what there is, then watches from the list's resourceVersion; bookmarks move that
version on; a version that is gone (410, as a status or as an ERROR event) means a new list; everything else is retried
from the last version seen, with back-off and jitter. It runs in a thread of its own, so that decoding big lists never
delays an answer, and hands batches to the loop that owns the node table.
"""

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import msgspec
import structlog
import urllib3

from scheduler import kubeapi, needs

PAGE = 500
WATCH_SECONDS = 300
"""The server ends a watch after this; a stream silent for longer than SILENCE_SECONDS is given up before."""
SILENCE_SECONDS = 90.0
"""Bookmarks come about every minute, so silence beyond this means a dead connection."""
BACKOFF_SECONDS = (0.2, 15.0)
RELIST_AFTER = 5
"""Failures in a row after which a new list is tried."""
GONE = 410
NOT_FOUND = 404
ABSENT_SECONDS = 60.0

T = TypeVar("T")
log = structlog.get_logger()


RUNNING_PODS = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
OPTED_OUT_NAMESPACES = {"labelSelector": f"{needs.INJECT_LABEL}=false"}


class _ListMetadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    next: str = msgspec.field(name="continue", default="")


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Versioned(msgspec.Struct):
    metadata: _ListMetadata = msgspec.field(default_factory=_ListMetadata)
    code: int = 0
    message: str = ""


class _Gone(Exception):
    """The resourceVersion is too old to watch from."""


class _Idle(OSError):
    """A stream ended and brought nothing."""


BROKEN = (kubeapi.ApiError, urllib3.exceptions.HTTPError, msgspec.MsgspecError, OSError)
"""What a call that did not work raises."""


def list_all(api: kubeapi.Api, path: str, kind: type[T], selector: Mapping[str, str] | None = None) -> list[T]:
    """Every object at a path, in pages of one consistent state; raises what BROKEN names."""
    return _list_pages(api, path, _page_decoder(kind), dict(selector or {}))[0]


def _page_decoder(kind: type[T]) -> "msgspec.json.Decoder[Any]":
    items: Any = list[kind] | None  # type: ignore[valid-type]
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [("metadata", _ListMetadata), ("items", items, None)]
    return msgspec.json.Decoder(msgspec.defstruct("Page", fields))


def _list_pages(
    api: kubeapi.Api, path: str, decoder: "msgspec.json.Decoder[Any]", selector: dict[str, str]
) -> tuple[list[Any], str]:
    items: list[Any] = []
    next_page = ""
    while True:
        query = {"limit": str(PAGE), **selector, **({"continue": next_page} if next_page else {})}
        try:
            page = decoder.decode(api.get(path, query).data)
        except kubeapi.ApiError as error:
            if error.status == GONE and next_page:  # the pages' snapshot expired: begin again
                items, next_page = [], ""
                continue
            raise
        items += page.items or []
        # Every page carries the version of the first: the list is one consistent state.
        next_page = page.metadata.next
        if not next_page:
            return items, page.metadata.resource_version


class Reflector(threading.Thread, Generic[T]):
    """Keeps `on_list` and `on_events` told about every object at a path."""

    def __init__(
        self,
        api: kubeapi.Api,
        path: str,
        kind: type[T],
        on_list: Callable[[list[T]], None],
        on_events: Callable[[list[tuple[str, T]]], None],
        selector: Mapping[str, str] | None = None,
        *,
        optional: bool = False,
    ) -> None:
        """Watch a path; one that is `optional` counts as empty for as long as the API server does not serve it."""
        super().__init__(name=f"watch {path}", daemon=True)
        self._optional = optional
        self._api, self._path = api, path
        self._on_list: Callable[[list[T]], None] = on_list
        self._on_events: Callable[[list[tuple[str, T]]], None] = on_events
        self._selector = dict(selector or {})
        self._object: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._page = _page_decoder(kind)
        self._event = msgspec.json.Decoder(_Event)
        self._versioned = msgspec.json.Decoder(_Versioned)
        self._stopping = threading.Event()
        self.relists = 0

    def stop(self) -> None:
        """End the thread; a stream under way is left to its timeout."""
        self._stopping.set()

    def run(self) -> None:
        """List, watch, and never give up."""
        version: str | None = None
        failures = 0
        while not self._stopping.is_set():
            try:
                if version is None:
                    version = self._list()
                if version is None:
                    self._stopping.wait(ABSENT_SECONDS)
                    continue
                began = version
                for reached in self._watch(version):
                    if reached != version:
                        version, failures = reached, 0
                    if self._stopping.is_set():
                        return
                if version == began:
                    raise _Idle("the watch ended before anything came")
            except _Gone:
                version = None
                if failures:
                    self._pause(failures)  # the list's own version is gone too: its cache lags, or the proxy's
                failures += 1
            except BROKEN as error:
                failures += 1
                if failures % RELIST_AFTER == 0:
                    version = None  # after a restore of etcd the server may never reach the version
                log.warning("watch broke", path=self._path, error=str(error), failures=failures)
                self._pause(failures)

    def _pause(self, failures: int) -> None:
        seconds = min(BACKOFF_SECONDS[1], BACKOFF_SECONDS[0] * 2 ** min(failures, 10))
        self._stopping.wait(seconds * random.uniform(0.5, 1))  # noqa: S311

    def _list(self) -> str | None:
        """List, and say the version; None: the API server does not serve this kind."""
        try:
            items, version = _list_pages(self._api, self._path, self._page, self._selector)
        except kubeapi.ApiError as error:
            if self._optional and error.status == NOT_FOUND:
                self._on_list([])
                return None
            raise
        self.relists += 1
        self._on_list(items)
        return version

    def _watch(self, version: str) -> Iterator[str]:
        """Deliver events, yielding the version reached after each batch; ends when the server ends the stream."""
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            **self._selector,
        }
        try:
            response = self._api.get(self._path, query, timeout=(5.0, SILENCE_SECONDS))
        except kubeapi.ApiError as error:
            if error.status == GONE:
                raise _Gone from error
            raise
        try:
            rest = b""
            for chunk in response.stream(amt=None):
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                events, reached = self._decode(lines)
                if events:
                    self._on_events(events)
                yield reached or version
                version = reached or version
        finally:
            response.close()

    def _decode(self, lines: list[bytes]) -> tuple[list[tuple[str, T]], str | None]:
        events: list[tuple[str, T]] = []
        reached: str | None = None
        for line in lines:
            if not line.strip():
                continue
            event = self._event.decode(line)
            head = self._versioned.decode(event.object)
            if event.type == "ERROR":
                if head.code == GONE:
                    if events:
                        self._on_events(events)
                    raise _Gone
                raise kubeapi.ApiError(head.code, head.message)
            reached = head.metadata.resource_version
            if event.type != "BOOKMARK":
                events.append((event.type, self._object.decode(event.object)))
        return events, reached
