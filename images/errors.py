"""Everything that can go wrong between an image's name and its digest.

ImageError
├── BadReference             the text is no image reference
├── NoVariant                no tag of the repository is a GPU vendor's variant of the image
└── RegistryError            the registry was asked and gave no usable answer
    ├── RegistryUnreachable  no answer in time, or only "later" (429, 5xx)
    ├── RegistryDenied       401 or 403: the registry wants other credentials
    └── NotFound             the repository, tag or manifest does not exist

Each takes one text, so that a cached error can be raised anew.
"""


class ImageError(Exception):
    """Base of all errors about images."""


class BadReference(ImageError):
    """The text is no image reference."""


class NoVariant(ImageError):
    """No tag of the repository is a GPU vendor's variant of the image."""


class RegistryError(ImageError):
    """The registry was asked and gave no usable answer."""


class RegistryUnreachable(RegistryError):
    """The registry gave no answer in time, or asks to come back later."""


class RegistryDenied(RegistryError):
    """The registry refuses these credentials, or wants some."""


class NotFound(RegistryError):
    """The registry holds no such repository, tag or manifest."""
