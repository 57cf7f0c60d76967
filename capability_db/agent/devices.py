"""What both vendors' libraries are to the agent."""

from typing import Final, Literal, Protocol

from capability_db.agent import reading

Vendor = Literal["nvidia", "amd"]
VENDORS: Final[tuple[Vendor, ...]] = ("nvidia", "amd")


class Devices(Protocol):
    """One vendor's GPUs on this machine; every method may hang or crash, so none is called outside the child."""

    def read(self) -> reading.Reading:
        """All devices as they are now, the library initialised first where it is not.

        Raises LibraryAbsentError where there is none, LibraryError where it fails as a whole.
        """

    def close(self) -> None:
        """Let the library go; the next read initialises it anew."""


def of(vendor: Vendor) -> Devices:
    """The devices of a vendor; imports no library yet."""
    if vendor == "nvidia":
        from capability_db.agent import devices_nvidia

        return devices_nvidia.Nvidia()
    from capability_db.agent import devices_amd

    return devices_amd.Amd()
