"""Writes the manifests that follow from the capability DB and the models: python manifests/generate.py [--check]."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from capability_db import vendors
from scheduler import decision

HERE = Path(__file__).parent
SCHEDULER = HERE / "kube-scheduler.yaml"
SCHEMA = HERE / "decision.schema.json"
LATE_SCHEDULER = HERE / "anygpu-scheduler.yaml"
MARK = re.compile(r"^( *)managedResources: # generated: .*\n", re.MULTILINE)


def generated() -> dict[Path, str]:
    """File -> what it should hold."""
    names = vendors.known_resources()
    ours = {"anygpu.io/gpu": False, "anygpu.io/claim": True}
    return {
        SCHEDULER: _managing(SCHEDULER, dict.fromkeys(names, False)),
        LATE_SCHEDULER: _managing(LATE_SCHEDULER, ours | dict.fromkeys(names, True)),
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
