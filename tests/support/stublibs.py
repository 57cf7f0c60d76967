"""Stub libraries behind the real pynvml and amdsmi: compiled here, answering from a file that a test writes as it runs.

`Stub` holds the lines of such a file (`nvmlstub.c` and `AMD` below say which), `libraries` the compiled files.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import types
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
NVIDIA_LIBRARY, AMD_LIBRARY = "libnvidia-ml.so.1", "libamd_smi.so"


class Stub:
    """The file that a stub library answers from; a dict of its lines, written when they change."""

    def __init__(self, path: Path, lines: dict[str, Any]) -> None:
        self.path, self.lines = path, dict(lines)
        self.set()

    def set(self, changes: dict[str, Any] | None = None) -> None:
        """Change lines; those of value None go."""
        self.lines |= changes or {}
        self.lines = {key: value for key, value in self.lines.items() if value is not None}
        fresh = self.path.with_suffix(".new")
        fresh.write_text("".join(f"{key} {value}\n" for key, value in self.lines.items()))
        fresh.replace(self.path)


def nvidia_library(directory: Path) -> Path:
    """The directory of a compiled libnvidia-ml.so.1."""
    _compile(HERE / "nvmlstub.c", directory / NVIDIA_LIBRARY)
    return directory


def amd_library(directory: Path) -> Path:
    """The directory of a compiled libamd_smi.so, made for the installed amdsmi."""
    source = directory / "amdsmistub.c"
    source.write_text(amd_source())
    _compile(source, directory / AMD_LIBRARY)
    return directory


def _compile(source: Path, library: Path, *options: str) -> None:
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wno-format-truncation", "-I", HERE]
    subprocess.run([*command, *options, "-o", library, source], check=True)


# --- AMD SMI ----------------------------------------------------------------------------------------------------------

AMD: dict[str, tuple[str, dict[str, str]]] = {
    "amdsmi_get_gpu_asic_info": (
        "amdsmi_asic_info_t",
        {
            "market_name": "name",
            "vendor_id": "=0x1002",
            "vendor_name": "=Advanced Micro Devices Inc. [AMD/ATI]",
            "device_id": "pci_id",
            "asic_serial": "=0x1",
            "num_of_compute_units": "cus",
            "target_graphics_version": "gfx",
        },
    ),
    "amdsmi_get_gpu_vram_info": ("amdsmi_vram_info_t", {"vram_size": "memory"}),
    "amdsmi_get_gpu_vram_usage": ("amdsmi_vram_usage_t", {"vram_total": "memory", "vram_used": "used"}),
    "amdsmi_get_gpu_driver_info": ("amdsmi_driver_info_t", {"driver_version": "driver", "driver_name": "=amdgpu"}),
    "amdsmi_get_power_cap_info": ("amdsmi_power_cap_info_t", {"power_cap": "power_limit"}),
    "amdsmi_get_power_info": ("amdsmi_power_info_t", {"current_socket_power": "power"}),
    "amdsmi_get_gpu_total_ecc_count": (
        "amdsmi_error_count_t",
        {"correctable_count": "ecc_corrected", "uncorrectable_count": "ecc_uncorrected"},
    ),
    "amdsmi_get_gpu_enumeration_info": ("amdsmi_enumeration_info_t", {"drm_render": "render"}),
    "amdsmi_get_gpu_metrics_info": (
        "amdsmi_gpu_metrics_t",
        {"ppt_residency_acc": "held_power", "hbm_thm_residency_acc": "held_memory"},
    ),
}
"""Function -> the struct it fills, and from which line of the device each field comes; `=` is a fixed value.

Lines of the whole library: `count`, `error`, `hang`, `crash`. Besides the fields a device has `uuid`, `address`,
`numa`, `compute`, `nps`, `temperature`, `pages` (of which `pages_pending` wait), `link.N` (the type of the link to
device N), `error` and `hang`. Numbers may be written in hex.
"""


def _wrapper() -> types.ModuleType:
    """amdsmi's struct classes, without a library: what its symbols are does not matter."""
    found = importlib.util.find_spec("amdsmi")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).with_name("amdsmi_wrapper.py")
    module = types.ModuleType("wrapper")
    module.__file__ = str(path)
    with mock.patch.object(ctypes, "CDLL", lambda _: mock.MagicMock()):
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def amd_symbols() -> set[str]:
    """All symbols that the installed amdsmi binds when it is imported."""
    module = _wrapper()
    return set(re.findall(r"_libraries\['libamd_smi.so'\]\.(\w+)", Path(str(module.__file__)).read_text()))


def amd_source() -> str:
    """A libamd_smi.so in C: every symbol is there, and those that the agent asks answer from the file."""
    wrapper = _wrapper()
    parts = [(HERE / "amdsmistub.c").read_text()]
    pages = wrapper.amdsmi_retired_page_record_t
    pending, retired = wrapper.AMDSMI_MEM_PAGE_STATUS_PENDING, wrapper.AMDSMI_MEM_PAGE_STATUS_RESERVED
    parts.append(f"""
int amdsmi_get_gpu_bad_page_info(Handle handle, uint32_t *count, char *out) {{
    BEGIN
    const char *s = of(device, "pages"), *waiting = of(device, "pages_pending");
    if (!s) return NOT_SUPPORTED;
    *count = (uint32_t)number(s);
    for (uint32_t i = 0; out && i < *count; i++) {{
        uint32_t state = waiting && i < number(waiting) ? {pending} : {retired};
        memcpy(out + i * {ctypes.sizeof(pages)} + {pages.status.offset}, &state, {pages.status.size});
    }}
    return 0;
}}""")
    for function, (struct, fields) in AMD.items():
        parts.append(_function(function, getattr(wrapper, struct), fields))
    there = set(re.findall(r"^int (\w+)\(", "\n".join(parts), re.M))
    parts += [f"int {name}(void) {{ return NOT_SUPPORTED; }}" for name in sorted(amd_symbols() - there)]
    return "\n".join(parts) + "\n"


def _function(name: str, struct: Any, fields: dict[str, str]) -> str:
    blank = "0xff" if name == "amdsmi_get_gpu_metrics_info" else "0"
    own = [key for key in fields.values() if not key.startswith("=")]
    known = " && ".join(f'!of(device, "{key}")' for key in own)
    lines = [
        f"int {name}(Handle handle, {'uint32_t sensor, ' if 'power_cap' in name else ''}char *out) {{",
        "    BEGIN",
    ]
    lines += [
        "    const char *s;",
        f"    if ({known}) return NOT_SUPPORTED;",
        f"    memset(out, {blank}, {ctypes.sizeof(struct)});",
    ]
    for field, key in fields.items():
        place = getattr(struct, field)
        said = f'"{key[1:]}"' if key.startswith("=") else f'of(device, "{key}")'
        if issubclass(dict(each[:2] for each in struct._fields_)[field], ctypes.Array):
            lines.append(f'    if ((s = {said})) snprintf(out + {place.offset}, {place.size}, "%s", s);')
        else:
            lines.append(
                f"    if ((s = {said})) {{ uint64_t n = number(s); memcpy(out + {place.offset}, &n, {place.size}); }}"
            )
    return "\n".join([*lines, "    return 0;", "}"])


def environment(libraries: Path, **stubs: Stub) -> dict[str, str]:
    """The environment of an agent whose libraries are these, by `nvidia` and `amd`."""
    own = {"nvidia": "NVML_STUB", "amd": "AMDSMI_STUB"}
    return {
        **{key: value for key, value in os.environ.items() if key not in ("ROCM_PATH", "ROCM_HOME")},
        "LD_LIBRARY_PATH": str(libraries),
        **{own[vendor]: str(stub.path) for vendor, stub in stubs.items()},
    }
