"""What the scheduler refuses, and how it says so.

AnygpuError                 a text for the user; `exit_status` of the CLI
├── InvalidInput            2: what was written is wrong
│   └── InvalidNeeds        2: annotations that say no valid need
├── NothingFits             1
└── Unreachable             3: cluster or registry
    └── NoCluster           3: nothing says which cluster
"""


class AnygpuError(Exception):
    """A refusal whose text is meant for the user."""

    exit_status = 1


class InvalidInput(AnygpuError):
    """What was written is wrong; the text says what would be right."""

    exit_status = 2


class InvalidNeeds(InvalidInput):
    """Annotations that say no valid need; one problem a line of `problems`."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


class NothingFits(AnygpuError):
    """The question was valid; the answer is no."""


class Unreachable(AnygpuError):
    """The cluster or the registry did not answer."""

    exit_status = 3


class NoCluster(Unreachable):
    """Nothing says which cluster: no snapshot, no kubeconfig, not in a pod."""
