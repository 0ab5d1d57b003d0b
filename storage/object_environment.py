"""What clients of object storage are configured by: variables of the environment, by the scheme of a URL.

obstore reads them itself. Some that hold what they cannot end it in a panic, which prints what it likes; so their form
is looked at before, and no error repeats what is in one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ground.errors import StorageFailed
from ground.places import CREDENTIALS

# What says which service is asked; but for S3, who asks says that.
SERVICE: Mapping[str, tuple[str, ...]] = {**CREDENTIALS, "s3": ("AWS_ENDPOINT_URL", "AWS_REGION")}

_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_REGIONS = {"s3": ("AWS_REGION", "AWS_DEFAULT_REGION")}
# These go into a header, or sign one.
_KEYS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_TOKEN"),
    "gs": ("GOOGLE_BEARER_TOKEN",),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN"),
}
_ADDRESS = re.compile(
    r"(?i:https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?(/[A-Za-z0-9._~%/-]*)?"
)
_REGION = re.compile(r"[A-Za-z0-9._-]+")
_MOST_PORT = (1 << 16) - 1


def require_sound(scheme: str) -> None:
    """Raise `StorageFailed` for a variable that holds what it cannot; it is named, and not repeated."""
    for name in _set_among(_ENDPOINTS, scheme):
        found = _ADDRESS.fullmatch(os.environ[name])
        if found is None or int(found["port"] or 0) > _MOST_PORT:
            raise StorageFailed(f"{name} is no address of a service; give it as https://HOST:PORT, or unset it")
    for name in _set_among(_REGIONS, scheme):
        if not _REGION.fullmatch(os.environ[name]):
            raise StorageFailed(f"{name} is no name of a region; give one such as us-east-1, or unset it")
    for name in _set_among(_KEYS, scheme):
        if not os.environ[name].isprintable():
            raise StorageFailed(f"{name} holds what cannot be printed, such as the end of a line; set it without")


def is_plain_http(scheme: str) -> bool:
    """Whether an address of the service is one of http, as the user wrote it."""
    return any(os.environ[name].lower().startswith("http://") for name in _set_among(_ENDPOINTS, scheme))


def _set_among(names: Mapping[str, tuple[str, ...]], scheme: str) -> list[str]:
    return [name for name in names.get(scheme, ()) if name in os.environ]
