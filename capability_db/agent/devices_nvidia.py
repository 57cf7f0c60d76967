"""NVIDIA GPUs through NVML (pynvml, which finds each symbol when it is used: an old driver lacks some)."""

import collections
import ctypes
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from capability_db.agent import mig, reading

MIB: Final = 1024 * 1024
SWITCH: Final = 2
"""nvmlIntNvLinkDeviceType_t: what is at the other end of an NVLink is an NVSwitch."""
LINKS_EVERY: Final = 6
"""Readings between two looks at the links: hundreds of calls, and what they say seldom changes."""
EVENTS_AT_ONCE: Final = 64

THROTTLES: Final = (
    (0x04, "power cap"),
    (0x08, "hardware slowdown"),
    (0x20, "software thermal slowdown"),
    (0x40, "hardware thermal slowdown"),
    (0x80, "power brake"),
)
"""nvmlClocksEventReason bits that hold clocks down against the user's will; idle and clock settings are not such."""

APPLICATION_XIDS: Final = frozenset({13, 31, 43, 45, 68, 109})
"""XIDs that a program causes, and that say nothing of the GPU: those that NVIDIA's device plugin skips."""


class Nvidia:
    """The GPUs that NVML lists; implements Devices."""

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self._sysfs = sysfs
        self._nvml: Any = None
        self._events: Any = None
        self._registered: dict[int, int] = {}
        """NVML's handle of a device -> its index; their critical errors are heard of."""
        self._profiles: dict[str, dict[int, reading.Profile]] = {}
        """NVML's id of each profile -> the profile, by GPU."""
        self._ancestors: dict[tuple[int, int], reading.LinkKind | None] = {}
        self._links: tuple[reading.Link, ...] = ()
        self._readings = 0

    def read(self) -> reading.Reading:
        """All GPUs as they are now; raises as Devices says."""
        nvml = self._open()
        try:
            return self._read(nvml)
        except nvml.NVMLError as error:
            raise _failure(error) from error

    def close(self) -> None:
        """Shut NVML down."""
        if self._nvml is not None:
            self._ask(self._nvml.nvmlShutdown)
        self.__init__(self._sysfs)  # type: ignore[misc] # everything remembered is of the session that ends

    def _open(self) -> Any:
        import pynvml  # type: ignore[import-untyped]

        if self._nvml is None:
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError_LibraryNotFound as error:
                raise reading.LibraryAbsentError("libnvidia-ml.so.1 is not here") from error
            except pynvml.NVMLError as error:
                raise _failure(error) from error
            self._nvml = pynvml
            self._events = self._ask(pynvml.nvmlEventSetCreate)
        return self._nvml

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call returns; None where this driver or this GPU does not say.

        A GPU that is lost, and a driver that is gone, are raised: they are no missing figure.
        """
        nvml = self._nvml
        try:
            return call(*arguments)
        except nvml.NVMLError as error:
            if error.value in (
                nvml.NVML_ERROR_GPU_IS_LOST,
                nvml.NVML_ERROR_RESET_REQUIRED,
                nvml.NVML_ERROR_UNINITIALIZED,
                nvml.NVML_ERROR_DRIVER_NOT_LOADED,
                nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            ):
                raise
            return None

    def _read(self, nvml: Any) -> reading.Reading:
        driver = _text(self._ask(nvml.nvmlSystemGetDriverVersion))
        cuda = self._ask(nvml.nvmlSystemGetCudaDriverVersion_v2) or self._ask(nvml.nvmlSystemGetCudaDriverVersion)
        handles: dict[int, Any] = {}
        lost: dict[int, str] = {}
        gpus: dict[int, reading.Gpu] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handles[index] = nvml.nvmlDeviceGetHandleByIndex(index)
            except nvml.NVMLError as error:
                lost[index] = self._lost(error)
        xids = self._xids(handles)
        for index, handle in handles.items():
            try:
                gpus[index] = self._gpu(index, handle, tuple(xids.get(index, ())))
            except nvml.NVMLError as error:
                lost[index] = self._lost(error)
        links = self._all_links({index: handles[index] for index in gpus}, gpus)
        for index, why in lost.items():
            gpus[index] = reading.Gpu(index, lost=why)
        found = reading.Reading(
            driver, f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None, tuple(gpus[i] for i in sorted(gpus)), links
        )
        if lost:
            self.close()  # a GPU that was reset is back only for who initialises NVML again
        return found

    def _lost(self, error: Any) -> str:
        nvml = self._nvml
        if error.value in (nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
            raise error
        return f"NVML: {error}"

    def _gpu(self, index: int, handle: Any, xids: tuple[int, ...]) -> reading.Gpu:
        nvml, ask = self._nvml, self._ask
        uuid = _text(ask(nvml.nvmlDeviceGetUUID, handle))
        pci = ask(nvml.nvmlDeviceGetPciInfo, handle)
        address = _address(_text(pci.busId)) if pci else None
        capability = ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        # The first form counts what the driver keeps for itself as used.
        used = ask(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2) or memory
        limit = ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle) or ask(nvml.nvmlDeviceGetPowerManagementLimit, handle)
        power = ask(nvml.nvmlDeviceGetPowerUsage, handle)
        mode = ask(nvml.nvmlDeviceGetMigMode, handle)
        profiles = self._mig_profiles(uuid or str(index), handle, memory) if mode else {}
        on = bool(mode and mode[0])
        errors, problems = self._errors(handle)
        reasons = ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if reasons is None:
            reasons = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return reading.Gpu(
            index=index,
            uuid=uuid,
            names=(address,) if address else (),
            pci_bus_id=address,
            pci_device_id=f"{pci.pciDeviceId >> 16:04x}" if pci else None,
            product=_text(ask(nvml.nvmlDeviceGetName, handle)),
            target=f"{capability[0]}.{capability[1]}" if capability else None,
            memory_mib=memory.total // MIB if memory else None,
            memory_used_mib=used.used // MIB if used else None,
            numa_node=self._numa(handle, address),
            problems=problems,
            xids=xids,
            errors=errors,
            throttling=tuple(name for bit, name in THROTTLES if (reasons or 0) & bit),
            temperature_c=ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_watts=power / 1000 if power is not None else None,
            power_limit_watts=limit / 1000 if limit else None,
            mig=on if mode else None,
            instances=tuple(self._instances(handle, profiles)) if on else (),
            profiles=tuple(profiles.values()),
        )

    def _numa(self, handle: Any, address: str | None) -> int | None:
        # NVML's own answer is the node of the GPU's memory where that is one (GH200), and else NotSupported.
        try:
            node = int((self._sysfs / "bus/pci/devices" / (address or "-") / "numa_node").read_text())
        except (OSError, ValueError):
            node = -1
        if node < 0:
            said = self._ask(self._nvml.nvmlDeviceGetNumaNodeId, handle)
            node = -1 if said is None else said
        return node if node >= 0 else None

    # --- health ---

    def _errors(self, handle: Any) -> tuple[reading.Errors | None, tuple[str, ...]]:
        nvml, ask = self._nvml, self._ask
        corrected_ever, uncorrected_ever = (
            ask(nvml.nvmlDeviceGetTotalEccErrors, handle, kind, nvml.NVML_AGGREGATE_ECC)
            for kind in (nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
        )
        since_load = ask(
            nvml.nvmlDeviceGetTotalEccErrors,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        )
        rows = ask(nvml.nvmlDeviceGetRemappedRows, handle)
        if rows:
            corrected, uncorrected, pending, failed = rows
            retired: int | None = corrected + uncorrected
        else:  # GPUs before Ampere retire pages
            failed = None
            pending = ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
            causes = [ask(nvml.nvmlDeviceGetRetiredPages, handle, cause) for cause in (0, 1)]
            retired = sum(len(pages) for pages in causes if pages is not None) if any(causes) else None
            retired = 0 if retired is None and causes == [[], []] else retired
        problems = []
        if failed:
            problems.append("memory rows could not be remapped: the GPU needs service")
        if pending:
            problems.append("memory waits for a GPU reset to be retired after errors")
        if since_load:
            problems.append(f"{since_load} uncorrectable memory errors since the driver was loaded")
        known = (corrected_ever, uncorrected_ever, retired, pending, failed)
        if all(each is None for each in known):
            return None, ()
        errors = reading.Errors(
            corrected=corrected_ever,
            uncorrected=uncorrected_ever,
            retired=retired,
            pending=None if pending is None else bool(pending),
            remap_failed=None if failed is None else bool(failed),
        )
        return errors, tuple(problems)

    def _xids(self, handles: dict[int, Any]) -> dict[int, list[int]]:
        """Critical XIDs that came since the last reading, by index."""
        nvml, found = self._nvml, collections.defaultdict[int, list[int]](list)
        if self._events is None:
            return found
        for index, handle in handles.items():
            key = ctypes.cast(handle, ctypes.c_void_p).value or 0
            if key not in self._registered:
                self._registered[key] = index
                try:
                    nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)
                except nvml.NVMLError:
                    continue  # not supported; or lost, which reading it will tell
        for _ in range(EVENTS_AT_ONCE):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:
                break  # Timeout: no more
            index = self._registered.get(ctypes.cast(event.device, ctypes.c_void_p).value or 0, -1)
            if event.eventType == nvml.nvmlEventTypeXidCriticalError and event.eventData not in APPLICATION_XIDS:
                found[index].append(event.eventData)
        return found

    # --- MIG ---

    def _mig_profiles(self, key: str, handle: Any, memory: Any) -> dict[int, reading.Profile]:
        # What a GPU offers does not change; it is asked once a session.
        if key not in self._profiles:
            whole = memory.total // MIB if memory else 0
            asked = (
                self._mig_profile(handle, number, whole) for number in range(self._nvml.NVML_GPU_INSTANCE_PROFILE_COUNT)
            )
            self._profiles[key] = dict(each for each in asked if each is not None)
        return self._profiles[key]

    def _mig_profile(self, handle: Any, number: int, whole_mib: int) -> tuple[int, reading.Profile] | None:
        nvml, ask = self._nvml, self._ask
        info = ask(nvml.nvmlDeviceGetGpuInstanceProfileInfo, handle, number)
        if info is not None and (said := _text(info.name)):
            name = said.removeprefix("MIG ")
        else:  # drivers before R515 name none
            info = ask(nvml.nvmlDeviceGetGpuInstanceProfileInfo, handle, number, 1)
            if info is None:
                return None
            media = number in (nvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1, nvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE_REV1)
            name = mig.profile_name(info.sliceCount, info.memorySizeMB, whole_mib) + ("+me" if media else "")
        count = ctypes.c_uint(0)
        call = nvml.nvmlDeviceGetGpuInstancePossiblePlacements
        if ask(call, handle, info.id, None, ctypes.byref(count)) is None or not count.value:
            return None
        placements = (nvml.c_nvmlGpuInstancePlacement_t * count.value)()
        if ask(call, handle, info.id, placements, ctypes.byref(count)) is None:
            return None
        found = placements[: count.value]
        starts = tuple(sorted(each.start for each in found))
        return info.id, reading.Profile(name, found[0].size, starts, info.instanceCount)

    def _instances(self, handle: Any, profiles: dict[int, reading.Profile]) -> Iterator[reading.Instance]:
        nvml, ask = self._nvml, self._ask
        told = set()
        for number in range(ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            device = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            if device is None:
                continue
            attributes = ask(nvml.nvmlDeviceGetAttributes, device)
            memory = ask(nvml.nvmlDeviceGetMemoryInfo, device)
            instance = ask(nvml.nvmlDeviceGetGpuInstanceId, device)
            gpu_instance = ask(nvml.nvmlDeviceGetGpuInstanceById, handle, instance) if instance is not None else None
            info = ask(nvml.nvmlGpuInstanceGetInfo, gpu_instance) if gpu_instance is not None else None
            profile = profiles.get(info.profileId) if info else None
            name = profile.name if profile else mig.profile_in_name(_text(ask(nvml.nvmlDeviceGetName, device)))
            if attributes and attributes.computeInstanceSliceCount < attributes.gpuInstanceSliceCount:
                name = f"{attributes.computeInstanceSliceCount}c.{name}"  # one of several in its GPU instance
            if info:
                told.add(info.id)
            yield reading.Instance(
                profile=name or "unknown",
                uuid=_text(ask(nvml.nvmlDeviceGetUUID, device)),
                start=info.placement.start if info else None,
                size=info.placement.size if info else None,
                memory_mib=attributes.memorySizeMB if attributes else (memory.total // MIB if memory else None),
            )
        # GPU instances without a compute instance are no devices, and hold their place all the same.
        for number, profile in profiles.items():
            room, count = (nvml.c_nvmlGpuInstance_t * profile.most)(), ctypes.c_uint(profile.most)
            if ask(nvml.nvmlDeviceGetGpuInstances, handle, number, room, ctypes.byref(count)) is None:
                continue
            for gpu_instance in room[: count.value]:
                info = ask(nvml.nvmlGpuInstanceGetInfo, gpu_instance)
                if info is not None and info.id not in told:
                    yield reading.Instance(profile.name, None, info.placement.start, info.placement.size)

    # --- links ---

    def _all_links(self, handles: dict[int, Any], gpus: dict[int, reading.Gpu]) -> tuple[reading.Link, ...]:
        self._readings += 1
        if self._readings % LINKS_EVERY != 1:
            return tuple(each for each in self._links if each.one in handles and each.other in handles)
        try:
            counts = self._nvlinks(handles, {gpu.pci_bus_id: index for index, gpu in gpus.items() if gpu.pci_bus_id})
            found = []
            for one, other in itertools.combinations(sorted(handles), 2):
                if count := counts.get((one, other)):
                    found.append(reading.Link(one, other, "nvlink", count))
                elif (near := self._ancestor(handles, one, other)) is not None:
                    found.append(reading.Link(one, other, near))
            self._links = tuple(found)
        except self._nvml.NVMLError:
            self._readings = 0  # a GPU went in between; the next reading says which
            return ()
        return self._links

    def _nvlinks(self, handles: dict[int, Any], places: dict[str, int]) -> dict[tuple[int, int], int]:
        nvml, ask = self._nvml, self._ask
        direct: collections.Counter[tuple[int, int]] = collections.Counter()
        switched: collections.Counter[int] = collections.Counter()
        for index, handle in handles.items():
            for link in range(nvml.NVML_NVLINK_MAX_LINKS):
                state = ask(nvml.nvmlDeviceGetNvLinkState, handle, link)
                if state is None:
                    break  # not that many
                if not state:
                    continue
                if ask(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link) == SWITCH:
                    switched[index] += 1
                    continue
                remote = ask(nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
                other = places.get(_address(_text(remote.busId)) or "") if remote else None
                if other is not None and index < other:
                    direct[index, other] += 1
        for one, other in itertools.combinations(sorted(switched), 2):
            direct[one, other] += min(switched[one], switched[other])  # a switch joins all that it has links to
        return direct

    def _ancestor(self, handles: dict[int, Any], one: int, other: int) -> reading.LinkKind | None:
        nvml = self._nvml
        if (one, other) not in self._ancestors:
            level = self._ask(nvml.nvmlDeviceGetTopologyCommonAncestor, handles[one], handles[other])
            kinds: dict[int, reading.LinkKind] = {
                nvml.NVML_TOPOLOGY_INTERNAL: "pcie",
                nvml.NVML_TOPOLOGY_SINGLE: "pcie",
                nvml.NVML_TOPOLOGY_MULTIPLE: "pcie",
                nvml.NVML_TOPOLOGY_HOSTBRIDGE: "host",
                nvml.NVML_TOPOLOGY_NODE: "host",
                nvml.NVML_TOPOLOGY_SYSTEM: "numa",
            }
            self._ancestors[one, other] = kinds.get(level)
        return self._ancestors[one, other]


def _failure(error: Any) -> reading.LibraryError:
    import pynvml

    gone = (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    return reading.LibraryError(f"NVML: {error}", unloaded=error.value in gone)


def _text(value: Any) -> str | None:
    """A string of the library's, some of whose versions give bytes; None for an empty one."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return (value or "").strip() or None


def _address(bus_id: str | None) -> str | None:
    """A PCI address as sysfs writes it, `0000:65:00.0`; NVML gives the domain eight digits."""
    if bus_id is None:
        return None
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain[-4:]}:{rest}" if int(domain or "0", 16) <= 0xFFFF else bus_id.lower()
