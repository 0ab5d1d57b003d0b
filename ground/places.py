"""Where a store is: a folder, or a place in object storage, by its URL.

A place is a name, and nothing is opened by it. A URL has neither credentials nor a query: it is shown, noted in runs
and suggested in commands, so secrets come from the environment alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ground.errors import InvalidInput, UnknownName, store_command

# What stands before the path: a bucket or container, or nothing.
SCHEMES = ("s3", "gs", "az", "file")
_EXAMPLE = "s3://BUCKET/PATH"
# The variables that let somebody in, by scheme; at a folder nobody asks for any.
CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_PART = re.compile(r"[A-Za-z0-9 ._=+~-]{1,255}")
_MOST_LETTERS = 1024


@dataclass(frozen=True, slots=True)
class ObjectUrl:
    """A place in object storage; what is below it is called by names with slashes.

    Args:
        scheme: of `SCHEMES`.
        bucket: bucket or container; empty for `file`.
        path: without a slash at either end.
    """

    scheme: str
    bucket: str
    path: str

    @classmethod
    def parse(cls, text: str) -> ObjectUrl:
        """A URL that the user gave; raises `InvalidInput` or `UnknownName`, which repeat nothing that may be secret."""
        scheme, _, rest = text.partition("://")
        if scheme not in SCHEMES:
            raise UnknownName("kind of object storage", scheme[:16], SCHEMES)
        variable, *_ = CREDENTIALS.get(scheme, CREDENTIALS["s3"])
        # A secret may have a slash in it, so not only what is before the first one counts.
        if "@" in rest or ":" in rest:
            raise InvalidInput(
                f"a URL of a store has no credentials in it; give {_EXAMPLE}, and them in the environment "
                f"({variable}, ...)"
            )
        if "?" in rest or "#" in rest:
            raise InvalidInput(
                f"a URL of a store has no query; give {_EXAMPLE}, and credentials in the environment ({variable}, ...)"
            )
        bucket, _, path = rest.partition("/")
        path = path.rstrip("/")
        parts = path.split("/")
        has_place = bucket == "" if scheme == "file" else _BUCKET.fullmatch(bucket) is not None
        are_names = all(_PART.fullmatch(part) and part.strip(".") for part in parts)
        if not has_place or not are_names or len(text) > _MOST_LETTERS:
            example = "file:///FOLDER" if scheme == "file" else f"{scheme}://BUCKET/PATH"
            raise InvalidInput(f"{text[:200]!a} is no place in object storage; give it as {example}, in plain letters")
        return cls(scheme, bucket, path)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}"

    def __truediv__(self, name: str) -> ObjectUrl:
        return ObjectUrl(self.scheme, self.bucket, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def absolute(self) -> ObjectUrl:
        """See `resolve`."""
        return self

    def resolve(self) -> ObjectUrl:
        """Itself: nothing in it is relative to anything."""
        return self


Place = Path | ObjectUrl


def parse_place(text: str) -> Place:
    """A folder or a URL, as the user gave it; raises as `ObjectUrl.parse`."""
    return ObjectUrl.parse(text) if "://" in text else Path(text)


def only_read(place: object) -> InvalidInput:
    """The error for what would change a store in object storage."""
    return InvalidInput(
        f"{place} is in object storage, where stores are read and not changed; do it in the folder that it was "
        "published from, or that convert fetches it into, then publish that at a new URL with: "
        f"{store_command('convert', 'DIR', to='objects', out='URL')}"
    )
