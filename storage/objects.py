"""Object storage, as a store needs it: objects that are written once, whole, and read in pieces.

obstore speaks to the services; its retries are the only ones, and they end: what a request may take is stated here.
Nothing that a service says is trusted to be of the length that was asked for, and no address that could hold a token is
repeated in an error. Credentials are the environment's, and nothing here reads them. In a folder, `file`, an object is
a file of its own: no link is followed, and no pipe waited for.
"""

from __future__ import annotations

import errno
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ground.documents import Malformed
from ground.durable import fsync_path
from ground.errors import InvalidInput, StorageFailed
from ground.places import CREDENTIALS, ObjectUrl
from storage.object_environment import SERVICE, is_plain_http, require_sound
from storage.object_folder import files_below, require_file

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import ObjectStore as AnyStore

# An attempt, and all attempts of a request together.
_CONNECT, _ATTEMPT, _REQUEST = timedelta(seconds=5), timedelta(seconds=30), timedelta(seconds=60)
MAX_RETRIES = 10
_PIECE_BYTES = 8 << 20
_PROBE = re.compile(r"\.probe-[0-9a-f]{16}")
_ADDRESS = re.compile(r"\S*://\S*|\S*\?\S+=\S*")
_STATUS = re.compile(r"status code: (\d{3})|status: (\d{3})")
# How services say that a bucket is not there.
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist|Unable to canonicalize filesystem root")
# How they say that a range begins where nothing is any more, as it does in whatever is empty.
_PAST_END = re.compile(r"status code: 416|status: 416|Requested range was invalid")
_OF_LIBRARY = re.compile(r"Generic \w+ error: ")
_MOST_WORDS = 120


class Objects:
    """The objects below a URL, by name.

    Args:
        url: where.
        make: whether the folder of a `file` URL is made if it is not there.

    Raises:
        StorageFailed: there is no such place, or obstore is not configured for it.
    """

    def __init__(self, url: ObjectUrl, *, make: bool = False) -> None:
        self.url = url
        self._folder = Path(f"/{url.path}") if url.scheme == "file" else None
        with self._reported("opened"):
            self._store = _connected(url, make=make)

    def read(self, name: str, most_bytes: int) -> bytes:
        """A whole object.

        Raises:
            FileNotFoundError: there is none of this name.
            Malformed: it is larger, or no file of its own.
            StorageFailed: the service does not give it.
        """
        import obstore

        self._require_file(name)
        with self._reported("read"):
            found = obstore.get(self._store, name)
            content = bytearray()
            for part in found.stream(min_chunk_size=_PIECE_BYTES):
                content += part
                if len(content) > most_bytes:
                    raise Malformed(f"it is larger than {most_bytes} bytes")
        return bytes(content)

    def read_into(self, name: str, content: memoryview, offset: int) -> int:
        """Fill `content` from an object, from a byte on, as far as it goes; how many bytes that is.

        Raises:
            FileNotFoundError: there is none of this name.
            Malformed: it is no file of its own.
            StorageFailed: the service does not give it, or something else than was asked for.
        """
        import obstore
        from obstore.exceptions import GenericError

        if not content:
            return 0
        self._require_file(name)
        found = 0
        with self._reported("read"):
            try:
                given = obstore.get(self._store, name, options={"range": (offset, offset + len(content))})
            except GenericError as error:
                if _PAST_END.search(str(error)):
                    return 0
                raise
            if given.range[0] != offset:
                raise StorageFailed(f"{self.url} is on a service that gives other bytes than it is asked for")
            for part in given.stream(min_chunk_size=_PIECE_BYTES):
                if found + len(part) > len(content):
                    raise StorageFailed(f"{self.url} is on a service that gives more than asked for; use another")
                content[found : found + len(part)] = memoryview(part)
                found += len(part)
        return found

    def has(self, name: str) -> bool:
        """Whether there is something of this name, whatever it is."""
        try:
            # Unlike a question for its size alone, this is answered with why not.
            self.read_into(name, memoryview(bytearray(1)), 0)
        except FileNotFoundError:
            return False
        except Malformed:
            return True
        return True

    def holds(self, name: str, content: bytes) -> bool:
        """Whether an object holds exactly this; it is read, since what services say of a digest differs."""
        try:
            return self.read(name, len(content)) == content
        except (FileNotFoundError, Malformed):
            return False

    def sizes(self, below: str | None = None) -> Iterator[tuple[str, int]]:
        """Name and bytes of every object there is, or of those below a name, some at a time."""
        with self._reported("listed"):
            yield from ((name, size) for name, size in self._listed(below) if not _PROBE.fullmatch(name))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object, whole or not at all; False where there is one of this name, which stays as it is.

        Raises:
            StorageFailed: the service does not take it; whether it is there is then not known.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            self._require_file(name)
        except Malformed:
            return False  # nor is anything written through a link
        with self._reported("written to"):
            try:
                # In one request: an upload in parts cannot be conditional everywhere.
                obstore.put(self._store, name, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        if self._folder is not None:
            # A service keeps what it has taken; of a disk, that has to be asked for.
            path = self._folder / name
            for part in (path, *path.parents):
                fsync_path(part)
                if part == self._folder:
                    break
        return True

    def require_writable(self) -> None:
        """Raise `StorageFailed` unless an object can be written here, and then never be written again."""
        import obstore

        probe = f".probe-{secrets.token_hex(8)}"
        # Where its answer was lost, the client asks again, and finds what it wrote.
        is_there = self.create(probe, b"1") or self.holds(probe, b"1")
        try:
            if not is_there or self.create(probe, b"2"):
                raise StorageFailed(
                    f"{self.url} is on a service that writes over an object though it was asked not to, so two who "
                    "publish there could mix their stores; use a service with conditional writes (If-None-Match)"
                )
        finally:
            # Who may only write leaves it: nobody reads it, and no store is kept from its place by it.
            with suppress(StorageFailed, FileNotFoundError), self._reported("cleaned"):
                obstore.delete(self._store, probe)

    def _require_file(self, name: str) -> None:
        if self._folder is not None:
            require_file(self._folder, name)

    def _listed(self, below: str | None) -> Iterator[tuple[str, int]]:
        import obstore

        if self._folder is not None:
            yield from files_below(self._folder, below or "")
            return
        for batch in obstore.list(self._store, below):
            yield from ((item["path"], item["size"]) for item in batch)

    @contextmanager
    def _reported(self, done: str) -> Iterator[None]:
        """Turn what obstore raises into a sentence; a missing object stays a `FileNotFoundError`."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            if _NO_BUCKET.search(str(error)) or done == "written to":
                raise self._no_bucket() from None
            raise FileNotFoundError(errno.ENOENT, "there is no such object") from None
        except PermissionError:
            raise self._denied(done) from None
        except BaseError as error:
            raise self._failed(error, done) from None
        except BaseException as error:
            # A panic of obstore is none of its errors, and has no class that could be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise self._misconfigured(done) from None

    def _no_bucket(self) -> StorageFailed:
        if self._folder is not None:
            return StorageFailed(f"{self.url} is no folder that is there; make it, or give another URL")
        return StorageFailed(f"{self.url} is in no bucket that is there; make {self.url.bucket}, or give another URL")

    def _misconfigured(self, done: str) -> StorageFailed:
        scheme = self.url.scheme
        variables = ", ".join(dict.fromkeys((*SERVICE.get(scheme, ()), *CREDENTIALS.get(scheme, ()), "HTTPS_PROXY")))
        return StorageFailed(
            f"{self.url} could not be {done}: something in the environment is not of the form it should be; look at "
            f"{variables}, ..., then run the same command again"
        )

    def _denied(self, done: str) -> StorageFailed:
        if self._folder is not None:
            return StorageFailed(f"{self.url} may not be {done} by you; have it given to you, or give another URL")
        return StorageFailed(
            f"{self.url} may not be {done} with the credentials in the environment; give ones that may "
            f"({' and '.join(CREDENTIALS[self.url.scheme])}, ...), or another URL"
        )

    def _failed(self, error: Exception, done: str) -> StorageFailed:
        from obstore.exceptions import NotSupportedError, PermissionDeniedError, UnauthenticatedError

        text = str(error)
        status = next((int(code) for found in _STATUS.findall(text) for code in found if code), None)
        if _NO_BUCKET.search(text):
            return self._no_bucket()
        if isinstance(error, NotSupportedError) or status in (405, 501):
            return StorageFailed(
                f"{self.url} is on a service that cannot write an object on the condition that there is none; use one "
                "with conditional writes (If-None-Match)"
            )
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or status in (401, 403):
            return self._denied(done)
        variables = ", ".join(SERVICE.get(self.url.scheme, ()))
        see = f"the service answers ({variables}, ...)" if variables else "the disk is there"
        return StorageFailed(
            f"{self.url} could not be {done}: {_words(text, status)}; see that {see}, then run the same command again"
        )


def _connected(url: ObjectUrl, *, make: bool) -> AnyStore:
    """A client for what is below a URL, configured by the environment."""
    try:
        from obstore.store import AzureStore, GCSStore, LocalStore, S3Store
    except ImportError as error:
        raise InvalidInput(
            f"{url} needs a package that is not installed; add it with: pip install 'teacher-cache[objects]'"
        ) from error
    if url.scheme == "file":
        return LocalStore(f"/{url.path}", mkdir=make)
    require_sound(url.scheme)
    retries: RetryConfig = {"max_retries": MAX_RETRIES, "retry_timeout": _REQUEST}
    client: ClientConfig = {"connect_timeout": _CONNECT, "timeout": _ATTEMPT}
    make_store: Callable[..., Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[url.scheme]
    if url.scheme == "s3" and is_plain_http(url.scheme):
        client["allow_http"] = True  # as the user wrote it
    store: AnyStore = make_store(url.bucket, prefix=url.path, retry_config=retries, client_options=client)
    return store


def _words(text: str, status: int | None) -> str:
    """What went wrong, from the first line of an error alone, without any address."""
    first = text.partition("\n")[0]
    if status is not None:
        return f"it answers with status {status}"
    said = _ADDRESS.sub("...", _OF_LIBRARY.sub("", first.rpartition(" - ")[2], count=1))
    return "".join(letter if letter.isprintable() else " " for letter in said)[:_MOST_WORDS].strip() or "no answer"
