"""AMD GPUs through AMD SMI (amdsmi, which binds every symbol when it is imported)."""

import contextlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from capability_db.agent import reading

MICRO: Final = 1_000_000
LINKS_EVERY: Final = 6
"""Readings between two looks at the links."""
NO_FIGURE: Final = "N/A"

RESIDENCIES: Final = (
    ("ppt_residency_acc", "power cap"),
    ("prochot_residency_acc", "processor hot"),
    ("socket_thm_residency_acc", "socket temperature"),
    ("vr_thm_residency_acc", "voltage regulator temperature"),
    ("hbm_thm_residency_acc", "memory temperature"),
)
"""Counters that grow while clocks are held down, and why."""


class Amd:
    """The GPUs, or the partitions of GPUs, that AMD SMI lists; implements Devices."""

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self._sysfs = sysfs
        self._smi: Any = None
        self._links: tuple[reading.Link, ...] = ()
        self._readings = 0
        self._counters: dict[str, dict[str, int]] = {}
        """What RESIDENCIES were at the last reading, by device."""

    def read(self) -> reading.Reading:
        """All devices as they are now; raises as Devices says."""
        smi = self._open()
        try:
            return self._read(smi)
        except smi.AmdSmiException as error:
            raise _failure(error, smi) from error

    def close(self) -> None:
        """Shut AMD SMI down."""
        if self._smi is not None:
            self._ask(self._smi.amdsmi_shut_down)
        self._smi = None
        self._readings = 0

    def _open(self) -> Any:
        if self._smi is not None:
            return self._smi
        try:
            # Without the library the import prints to stdout and raises KeyError; with one of another version, that
            # lacks a symbol, AttributeError.
            with contextlib.redirect_stdout(sys.stderr):
                import amdsmi  # type: ignore[import-untyped]
        except AttributeError as error:
            raise reading.LibraryError(f"libamd_smi.so is of a version that amdsmi does not know: {error}") from error
        except (ImportError, KeyError, OSError) as error:
            raise reading.LibraryAbsentError("libamd_smi.so is not here") from error
        try:
            amdsmi.amdsmi_init(amdsmi.AmdSmiInitFlags.INIT_AMD_GPUS)
        except amdsmi.AmdSmiException as error:
            raise _failure(error, amdsmi) from error
        self._smi = amdsmi
        return amdsmi

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call returns; None where this driver or this GPU does not say."""
        try:
            return call(*arguments)
        except self._smi.AmdSmiException:
            return None
        except (UnicodeDecodeError, ValueError):
            return None  # amdsmi parses what the library gives, an empty serial number for one

    def _read(self, smi: Any) -> reading.Reading:
        handles = dict(enumerate(smi.amdsmi_get_processor_handles()))
        driver = None
        gpus: dict[int, reading.Gpu] = {}
        for index, handle in handles.items():
            try:
                gpus[index] = self._gpu(index, handle)
            except smi.AmdSmiException as error:
                address = self._ask(smi.amdsmi_get_gpu_device_bdf, handle)
                gpus[index] = reading.Gpu(index, pci_bus_id=_address(address), lost=_words(error))
            else:
                driver = driver or _said(
                    (self._ask(smi.amdsmi_get_gpu_driver_info, handle) or {}).get("driver_version")
                )
        lost = any(gpu.lost for gpu in gpus.values())
        links = self._all_links({index: handle for index, handle in handles.items() if not gpus[index].lost})
        if lost:
            self.close()  # a GPU that was reset is back only for who initialises the library again
        return reading.Reading(driver, None, tuple(gpus.values()), links)

    def _gpu(self, index: int, handle: Any) -> reading.Gpu:
        smi, ask = self._smi, self._ask
        asic = self._asic(handle)
        address = _address(ask(smi.amdsmi_get_gpu_device_bdf, handle))
        uuid = _said(ask(smi.amdsmi_get_gpu_device_uuid, handle))
        vram = ask(smi.amdsmi_get_gpu_vram_info, handle) or {}
        usage = ask(smi.amdsmi_get_gpu_vram_usage, handle) or {}
        cap = ask(smi.amdsmi_get_power_cap_info, handle) or {}
        numa = ask(smi.amdsmi_topo_get_numa_node_number, handle)
        errors, problems = self._errors(handle)
        # The other partitions of a GPU have no sensors of their own.
        first = address is None or address.endswith(".0")
        return reading.Gpu(
            index=index,
            uuid=uuid,
            names=tuple(each for each in (address, self._platform_name(handle)) if each),
            pci_bus_id=address,
            pci_device_id=_device_id(asic.get("device_id")),
            product=_said(asic.get("market_name")),
            target=_said(asic.get("target_graphics_version")),
            compute_units=_number(asic.get("num_compute_units")) or None,
            memory_mib=_number(vram.get("vram_size")) or _number(usage.get("vram_total")) or None,
            memory_used_mib=_number(usage.get("vram_used")),
            numa_node=numa if numa is not None and numa < 0xFFFF else None,
            problems=problems,
            errors=errors,
            throttling=self._throttling(uuid or address or str(index), handle) if first else (),
            temperature_c=self._temperature(handle) if first else None,
            power_watts=self._power(handle) if first else None,
            power_limit_watts=limit / MICRO if (limit := _number(cap.get("power_cap"))) else None,
            compute_mode=_said(ask(smi.amdsmi_get_gpu_compute_partition, handle)),
            memory_mode=_said(ask(smi.amdsmi_get_gpu_memory_partition, handle)),
        )

    def _asic(self, handle: Any) -> dict[str, Any]:
        """What the device is; raises where the device does not answer."""
        smi = self._smi
        try:
            found: dict[str, Any] = smi.amdsmi_get_gpu_asic_info(handle)
        except smi.AmdSmiLibraryException as error:
            unsaid = (
                smi.amdsmi_wrapper.AMDSMI_STATUS_NOT_SUPPORTED,
                smi.amdsmi_wrapper.AMDSMI_STATUS_NOT_YET_IMPLEMENTED,
            )
            if error.get_error_code() not in unsaid:
                raise
            return {}
        return found

    def _platform_name(self, handle: Any) -> str | None:
        """What the kernel calls the device behind a partition, `amdgpu_xcp_3`: the device plugin's name for it."""
        numbers = self._ask(self._smi.amdsmi_get_gpu_enumeration_info, handle) or {}
        render = _number(numbers.get("drm_render"))
        if render is None:
            return None
        place = os.path.realpath(self._sysfs / "class/drm" / f"renderD{render}" / "device")
        name = Path(place).name
        return name if name.startswith("amdgpu_xcp") else None

    def _errors(self, handle: Any) -> tuple[reading.Errors | None, tuple[str, ...]]:
        smi, ask = self._smi, self._ask
        counts = ask(smi.amdsmi_get_gpu_total_ecc_count, handle)
        pages = ask(smi.amdsmi_get_gpu_bad_page_info, handle)
        if counts is None and pages is None:
            return None, ()
        counts = counts or {}
        states = None if pages is None else [page["status"] for page in pages]
        wrapper = smi.amdsmi_wrapper
        pending = None if states is None else wrapper.AMDSMI_MEM_PAGE_STATUS_PENDING in states
        unreservable = None if states is None else wrapper.AMDSMI_MEM_PAGE_STATUS_UNRESERVABLE in states
        uncorrected = _number(counts.get("uncorrectable_count"))
        problems = []
        if unreservable:
            problems.append("memory pages could not be retired")
        if pending:
            problems.append("memory pages wait to be retired after errors")
        if uncorrected:
            problems.append(f"{uncorrected} uncorrectable memory errors since the driver was loaded")
        return reading.Errors(
            corrected=_number(counts.get("correctable_count")),
            uncorrected=uncorrected,
            retired=None if states is None else len(states),
            pending=pending,
            remap_failed=unreservable,
        ), tuple(problems)

    def _temperature(self, handle: Any) -> int | None:
        smi = self._smi
        for sensor in (smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureType.EDGE):
            said = self._ask(smi.amdsmi_get_temp_metric, handle, sensor, smi.AmdSmiTemperatureMetric.CURRENT)
            if said is not None:
                return int(said)
        return None

    def _power(self, handle: Any) -> float | None:
        found = self._ask(self._smi.amdsmi_get_power_info, handle) or {}
        # MI300 and later give the current power, earlier ones an average; which is not given is N/A or all ones.
        said = (_number(found.get(key)) for key in ("current_socket_power", "average_socket_power", "socket_power"))
        return next((float(each) for each in said if each is not None and 0 < each < 0xFFFF), None)

    def _throttling(self, key: str, handle: Any) -> tuple[str, ...]:
        # amdsmi_get_violation_status would say it too, and sleeps 100 ms in each call to compare the same counters.
        metrics = self._ask(self._smi.amdsmi_get_gpu_metrics_info, handle)
        if metrics is None:
            return ()
        now = {name: value for name, _ in RESIDENCIES if (value := _number(metrics.get(name))) is not None}
        before = self._counters.get(key, now)
        self._counters[key] = now
        if now:
            return tuple(
                reason for name, reason in RESIDENCIES if now.get(name, 0) > before.get(name, now.get(name, 0))
            )
        held = metrics.get("indep_throttle_status")
        return ("clocks held down",) if held is True else ()

    def _all_links(self, handles: dict[int, Any]) -> tuple[reading.Link, ...]:
        self._readings += 1
        if self._readings % LINKS_EVERY != 1:
            return tuple(each for each in self._links if each.one in handles and each.other in handles)
        wrapper = self._smi.amdsmi_wrapper
        kinds: dict[int, reading.LinkKind] = {
            wrapper.AMDSMI_LINK_TYPE_INTERNAL: "xgmi",  # partitions of one GPU
            wrapper.AMDSMI_LINK_TYPE_XGMI: "xgmi",
            wrapper.AMDSMI_LINK_TYPE_PCIE: "host",
        }
        found = []
        for one, other in itertools.combinations(sorted(handles), 2):
            said = self._ask(self._smi.amdsmi_topo_get_link_type, handles[one], handles[other])
            if said is not None and said["type"] in kinds:
                found.append(reading.Link(one, other, kinds[said["type"]]))
        self._links = tuple(found)
        return self._links


def _failure(error: Any, smi: Any) -> reading.LibraryError:
    gone = getattr(error, "err_code", None) == smi.amdsmi_wrapper.AMDSMI_STATUS_DRIVER_NOT_LOADED
    return reading.LibraryError(_words(error), unloaded=gone)


def _words(error: Exception) -> str:
    """An error of the library's as one line: `AMDSMI_STATUS_IO - I/O Error`."""
    told = getattr(error, "err_info", None) or str(error)
    return f"AMD SMI: {' '.join(str(told).split())}"


def _said(value: Any) -> str | None:
    return str(value).strip() if value not in (None, "", NO_FIGURE) else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _device_id(value: Any) -> str | None:
    """Four hex digits of `0x74a1`; None where there is no such."""
    try:
        number = int(str(value), 16)
    except ValueError:
        return None
    return f"{number:04x}" if 0 < number <= 0xFFFF else None


def _address(bdf: str | None) -> str | None:
    return bdf.lower() if bdf else None
