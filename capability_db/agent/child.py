"""The child process that calls one vendor's library: `python -m capability_db.agent.child nvidia`.

For each line on stdin it reads the devices and writes one JSON line. What libraries print goes to stderr. After a
failure of the library as a whole the process ends: a driver that was reloaded may need another build of the library,
and that comes only with a fresh process.
"""

import os
import sys
from typing import cast

import msgspec

from capability_db.agent import devices, reading


def answer(library: devices.Devices) -> reading.Answer:
    """What the library says now, or why it says nothing."""
    try:
        return reading.Answer("ok", library.read())
    except reading.LibraryAbsentError as error:
        return reading.Answer("absent", text=str(error))
    except reading.LibraryError as error:
        return reading.Answer("failed", text=str(error), unloaded=error.unloaded)
    except Exception as error:  # noqa: BLE001 - a library's answer that nobody foresaw is a failed reading
        return reading.Answer("failed", text=f"{type(error).__name__}: {error}")


def main() -> None:
    """Answer until stdin ends, or until a reading fails."""
    # Libraries print where they like; the pipe is ours alone.
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        library = devices.of(cast("devices.Vendor", sys.argv[1]))
        for _ in sys.stdin.buffer:
            said = answer(library)
            out.write(msgspec.json.encode(said) + b"\n")
            if said.kind != "ok":
                return


if __name__ == "__main__":
    main()
