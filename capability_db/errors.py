"""What can be wrong with facts about GPUs.

CapabilityError
├── CatalogueError   shipped or registered data contradicts itself or names something unknown
└── QuantityError    a text is no Kubernetes quantity
"""


class CapabilityError(Exception):
    """Base of this package's errors."""


class CatalogueError(CapabilityError):
    """Data about GPU models is not usable; the text names the SKU and the field."""


class QuantityError(CapabilityError):
    """A text is no Kubernetes quantity."""
