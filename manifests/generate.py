"""Writes the manifests that follow from the capability DB and the models: python manifests/generate.py [--check]."""

import json
import sys
from pathlib import Path

from capability_db import vendors
from scheduler import decision

HERE = Path(__file__).parent
SCHEDULER = HERE / "kube-scheduler.yaml"
SCHEMA = HERE / "decision.schema.json"
MARK = "    managedResources: # generated: every name that the vendors' device plugins may publish\n"


def generated() -> dict[Path, str]:
    """File -> what it should hold."""
    head, mark, _ = SCHEDULER.read_text().partition(MARK)
    if not mark:
        raise SystemExit(f"{SCHEDULER}: the line {MARK.strip()!r} is gone")
    names = "".join(f"      - name: {name}\n" for name in vendors.known_resources())
    return {SCHEDULER: head + mark + names, SCHEMA: json.dumps(decision.schema(), indent=2) + "\n"}


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
