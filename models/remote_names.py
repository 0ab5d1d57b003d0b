"""Names of teachers that answer over a network: v2:URL, http:URL and openai:MODEL.

A URL here leads to a server and says nothing else: credentials, and a query, in which keys are often written, are
refused before anything keeps or prints them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from ground.errors import InvalidInput

# Where such teachers come from; what asks them is in `teacher_cache.teachers.elsewhere`.
REMOTE_ORIGINS = ("http", "openai", "v2")
_EXAMPLES = {"http": "http:https://HOST/PATH", "openai": "openai:MODEL", "v2": "v2:http://HOST/MODEL"}
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,255}")
_V2_PATH = re.compile(r"(?P<prefix>(?:/[^/]+)*?)(?:/v2/models)?/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/?")


@dataclass(frozen=True, slots=True)
class InferenceAddress:
    """A model of a server that speaks the Open Inference Protocol.

    Args:
        server: scheme, host, port, and what lies before the protocol's own paths.
        version: where the name says one.
    """

    server: str
    model: str
    version: str | None


def is_remote(name: str) -> bool:
    """Whether a teacher answers over a network."""
    return name.partition(":")[0] in REMOTE_ORIGINS


def require_remote(name: str) -> None:
    """Refuse what leads to no server; raises `InvalidInput`, without a word of what a key could be in."""
    origin, _, own = name.partition(":")
    if origin == "openai":
        if not _MODEL.fullmatch(own) or "://" in own:
            raise InvalidInput(f"openai: names no model; give {_EXAMPLES[origin]}, and --base-url URL")
    elif origin == "v2":
        inference_address(name)
    else:
        server_url(own, f"the teacher {origin}:", _EXAMPLES[origin])


def server_url(text: str, what: str, example: str) -> SplitResult:
    """A URL as its parts, which lead to a server and say no more.

    Args:
        what: is called so, for messages.
        example: of what is to be given.

    Raises:
        InvalidInput: it is no such URL.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not host or not _HOST.fullmatch(host) or not _is_plain(text):
        raise InvalidInput(f"{what} is no URL of http or https; give {example}")
    if "@" in parts.netloc:
        raise InvalidInput(
            f"{what} has credentials in its URL, which others can read there; leave them out, and put the key into the "
            "environment, as CKD_API_KEY"
        )
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise InvalidInput(f"{what} has a query or a fragment in its URL, where keys can be; give {example}")
    return parts


def inference_address(name: str) -> InferenceAddress:
    """What v2:URL leads to; raises `InvalidInput` where it is no model of a server."""
    parts = server_url(name.partition(":")[2], "the teacher v2:", _EXAMPLES["v2"])
    found = _V2_PATH.fullmatch(parts.path)
    if found is None or not _MODEL.fullmatch(found["model"]):
        raise InvalidInput(f"the teacher v2: names no model of a server; give {_EXAMPLES['v2']}")
    return InferenceAddress(f"{parts.scheme}://{parts.netloc}{found['prefix']}", found["model"], found["version"])


def remote_identity(name: str) -> str:
    """What stores know such a teacher by: host and model, without a path; letters, digits and _.- alone."""
    origin, _, own = name.partition(":")
    if origin == "openai":
        known = own
    elif origin == "v2":
        address = inference_address(name)
        known = f"{urlsplit(address.server).netloc}-{address.model}"
    else:
        known = urlsplit(own).netloc
    return f"{origin}:{re.sub(r'[^A-Za-z0-9_.-]+', '-', known)}"


def without_path(name: str) -> str:
    """Its name as a manifest has it: of a URL the server alone, since a path can hold what opens it."""
    origin, _, own = name.partition(":")
    if origin == "openai":
        return name
    parts = urlsplit(own)
    return f"{origin}:{parts.scheme}://{parts.netloc}/PATH"


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text and "\\" not in text
