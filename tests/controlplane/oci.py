"""A running OCI registry for tests, and what it takes to push small real images into it."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cluster
import httpx
import launch

Media = Literal["oci", "docker"]

START_TIMEOUT_S = 60.0


@dataclasses.dataclass(frozen=True)
class MediaTypes:
    """The names of the parts of an image, in one of the two dialects that registries hold."""

    manifest: str
    config: str
    layer: str
    index: str


MEDIA: dict[Media, MediaTypes] = {
    "oci": MediaTypes(
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.index.v1+json",
    ),
    "docker": MediaTypes(
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ),
}
ACCEPT = ", ".join(name for types in MEDIA.values() for name in (types.index, types.manifest))


class OciRegistry:
    """A docker-registry on a loopback port, with its storage in ``directory``; it dies with the test."""

    def __init__(self, directory: Path, binary: Path, port: int | None = None) -> None:
        self.directory = directory.absolute()
        self.binary = binary
        self.port = port or cluster.free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=30, headers={"Accept": ACCEPT})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, again on the same port and with the same images after a ``stop``; return when it answers."""
        if self._process is not None:
            return
        log = self.directory / "registry.log"
        self._process = launch.start(self.command(), log, tether=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the registry does not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def command(self) -> list[str]:
        """Write its configuration and return the command that serves it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.json"
        # JSON is YAML, so the configuration needs no library.
        settings = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": f"{self.directory}/data"}, "delete": {"enabled": True}},
            "http": {"addr": self.host, "secret": "test"},
        }
        config.write_text(json.dumps(settings))
        return [str(self.binary), "serve", str(config)]

    def stop(self) -> None:
        """Kill it, as an outage would; what was pushed stays."""
        if self._process is not None:
            launch.kill_group(self._process.pid)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """Kill it and let go of its client."""
        self.stop()
        self.http.close()

    def push(
        self,
        repository: str,
        tag: str | None,
        config_env: Mapping[str, str] | None = None,
        media: Media = "oci",
        platform: str = "linux/amd64",
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> str:
        """Return the digest of the pushed one-layer image; without a ``tag`` only that digest names it.

        The same arguments give the same digest. ``platform`` is ``os/architecture`` or ``os/architecture/variant``.
        """
        types = MEDIA[media]
        operating_system, architecture, *variant = platform.split("/")
        tar = _layer(f"{repository}:{tag}")
        config = {
            "architecture": architecture,
            "os": operating_system,
            **({"variant": variant[0]} if variant else {}),
            "config": {
                "Env": [f"{name}={value}" for name, value in (config_env or {}).items()],
                "Labels": dict(labels or {}),
                "Entrypoint": ["/app"],
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(tar)]},
            "history": [{"created_by": "test"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": types.manifest,
            "config": self._blob(repository, _json(config), types.config),
            "layers": [self._blob(repository, gzip.compress(tar, mtime=0), types.layer)],
            **({"annotations": dict(annotations)} if annotations else {}),
        }
        return self._manifest(repository, tag, manifest)

    def push_index(self, repository: str, tag: str | None, digests: Sequence[str], media: Media = "oci") -> str:
        """Return the digest of an index over images of this repository, each with the platform its config states."""
        entries = []
        for digest in digests:
            answer = self._ok(self.http.get(f"/v2/{repository}/manifests/{digest}"))
            config = self._ok(self.http.get(f"/v2/{repository}/blobs/{answer.json()['config']['digest']}")).json()
            platform = {key: config[key] for key in ("architecture", "os", "variant") if key in config}
            entries.append(
                {
                    "mediaType": answer.headers["content-type"],
                    "digest": digest,
                    "size": len(answer.content),
                    "platform": platform,
                }
            )
        index = {"schemaVersion": 2, "mediaType": MEDIA[media].index, "manifests": entries}
        return self._manifest(repository, tag, index)

    def delete(self, repository: str, digest: str) -> None:
        """Delete a manifest, and with it the tags that name it."""
        self._ok(self.http.delete(f"/v2/{repository}/manifests/{digest}"))

    def answers(self) -> bool:
        """Say whether it serves."""
        try:
            return self.http.get("/v2/").status_code == 200
        except httpx.TransportError:
            return False

    def _blob(self, repository: str, content: bytes, media_type: str) -> dict[str, Any]:
        digest = _digest(content)
        if self.http.head(f"/v2/{repository}/blobs/{digest}").status_code != 200:
            where = self._ok(self.http.post(f"/v2/{repository}/blobs/uploads/")).headers["location"]
            # The upload's location carries a query of its own, which params= would replace.
            url = httpx.URL(self.url).join(where).copy_add_param("digest", digest)
            self._ok(self.http.put(url, content=content, headers={"Content-Type": "application/octet-stream"}))
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def _manifest(self, repository: str, tag: str | None, manifest: Mapping[str, Any]) -> str:
        content = _json(manifest)
        headers = {"Content-Type": manifest["mediaType"]}
        path = f"/v2/{repository}/manifests/{tag or _digest(content)}"
        answer = self._ok(self.http.put(path, content=content, headers=headers))
        assert answer.headers["docker-content-digest"] == _digest(content)
        return _digest(content)

    @staticmethod
    def _ok(answer: httpx.Response) -> httpx.Response:
        if answer.status_code >= 300:
            raise RuntimeError(
                f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:600]}"
            )
        return answer


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _layer(text: str) -> bytes:
    """Return a tar of one file, ``/app``, the same bytes for the same text."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("app")
        entry.size = len(text.encode())
        tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()
