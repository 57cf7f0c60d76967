"""Writes the manifests that follow from the capability DB and the models: python manifests/generate.py [--check]."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from capability_db import crds, vendors
from capability_db.catalogue import Catalogue
from scheduler import claims, decision

HERE = Path(__file__).parent
SCHEDULER = HERE / "kube-scheduler.yaml"
SCHEMA = HERE / "decision.schema.json"
LATE_SCHEDULER = HERE / "anygpu-scheduler.yaml"
DEVICE_CLASSES = HERE / "device-classes.yaml"
CRDS = HERE / "crds.yaml"
CRDS_HEAD = """\
# The kinds that admins and node agents write: kubectl apply -f manifests/crds.yaml, before the rest.
# Generated from the models in capability_db/resources.py; `make generate` writes it, `anygpu crds` prints it.
"""
DEVICE_CLASSES_HEAD = """\
# DeviceClasses for binding claim: kubectl apply -f manifests/device-classes.yaml (Kubernetes 1.36 or newer, and a DRA
# driver for the GPUs). Generated from the capability DB; `make generate` writes it.
#
# anygpu             a whole GPU, NVIDIA or AMD, of a model that the capability DB knows; as the extended resource
#                    anygpu.io/gpu it is for pods that say themselves what they ask.
# VENDOR.anygpu.io   whatever a vendor's driver publishes for containers: whole, slices, shared. The templates that the
#                    webhook makes for pods with needs select among these.
# FORMAT.anygpu.io   whole GPUs of any vendor that compute a number format natively.
# FORMAT-matrix.…    whole GPUs whose tensor or matrix cores take the format.
#
# In a ResourceClaim of your own:
#
#   spec:
#     devices:
#       requests:
#         - name: gpu
#           exactly: {deviceClassName: fp8-matrix.anygpu.io}
"""
MARK = re.compile(r"^( *)managedResources: # generated: .*\n", re.MULTILINE)


def generated() -> dict[Path, str]:
    """File -> what it should hold."""
    names = vendors.known_resources()
    ours = {"anygpu.io/gpu": False, "anygpu.io/claim": True}
    return {
        SCHEDULER: _managing(SCHEDULER, dict.fromkeys(names, False)),
        LATE_SCHEDULER: _managing(LATE_SCHEDULER, ours | dict.fromkeys(names, True)),
        DEVICE_CLASSES: DEVICE_CLASSES_HEAD + "".join(map(_device_class, claims.device_classes(Catalogue.builtin()))),
        CRDS: CRDS_HEAD + yaml.dump_all(crds.documents(), Dumper=_Dumper, sort_keys=False, width=120),
        SCHEMA: json.dumps(decision.schema(), indent=2) + "\n",
    }


def _managing(path: Path, ignored: Mapping[str, bool]) -> str:
    """The file whose last list, the one so marked, is these resources and whether kube-scheduler leaves them to us."""
    text = path.read_text()
    mark = MARK.search(text)
    if not mark:
        raise SystemExit(f"{path}: the line 'managedResources: # generated: …' is gone")
    indent = mark[1] + "  "
    items = (
        f"{indent}- name: {name}\n" + (f"{indent}  ignoredByScheduler: true\n" if left_to_us else "")
        for name, left_to_us in ignored.items()
    )
    return text[: mark.end()] + "".join(items)


def _device_class(document: Mapping[str, Any]) -> str:
    """The document as YAML, its one expression as people read it."""
    (selector,) = document["spec"]["selectors"]
    lines = {"selectors": [{"cel": {"expression": _Lines(selector["cel"]["expression"])}}]}
    folded = {**document, "spec": document["spec"] | lines}
    return "---\n" + yaml.dump(folded, Dumper=_Dumper, sort_keys=False, width=1 << 20)


class _Lines(str):
    """Text that YAML writes line by line."""


class _Dumper(yaml.SafeDumper):
    """Writes such texts as literal blocks."""


_Dumper.add_representer(_Lines, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


def main() -> None:
    """Write the files; with --check only say which are not current."""
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        if stale:
            raise SystemExit(f"not current: {', '.join(str(path) for path in stale)}; run: make generate")
        return
    for path in stale:
        path.write_text(generated()[path])


if __name__ == "__main__":
    main()
