"""What can be wrong with facts about GPUs.

CapabilityError
├── ModelError       a model's need cannot be computed as asked
├── CatalogueError   shipped or registered data contradicts itself or names something unknown
├── ReportError      what a node's agent reports is not as NodeGPUs has it
└── QuantityError    a text is no Kubernetes quantity
"""


class CapabilityError(Exception):
    """Base of this package's errors."""


class CatalogueError(CapabilityError):
    """Data about GPU models is not usable; the text names the SKU and the field."""


class ReportError(CapabilityError):
    """A NodeGPUs's status is not as the kind has it; the text names the field."""


class ModelError(CapabilityError):
    """A model's need cannot be computed as asked; the text says what would be right."""

    def __init__(self, key: str, text: str) -> None:
        self.key = key
        """What of the question is at fault: `model`, `precision`, `batch`, `context` or `gpus`."""
        super().__init__(text)


class QuantityError(CapabilityError):
    """A text is no Kubernetes quantity."""
