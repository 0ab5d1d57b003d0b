"""A PostgreSQL server of our own, from the system's binaries: on loopback, with a password, gone afterwards.

PostgreSQL refuses to run as root, and tests in a container often do: then the server runs as `postgres`, or `nobody`.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

_USER = "ckd"
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_START_SECONDS = 60.0


def postgres_binaries() -> Path | None:
    """The folder of the newest `initdb` and `postgres` of this machine."""
    on_path = shutil.which("initdb")
    folders = [] if on_path is None else [Path(on_path).parent]
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    folders += sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    return next((path for path in folders if (path / "initdb").is_file() and (path / "postgres").is_file()), None)


class PostgresServer:
    """A server that can be stopped and started again, at the same port and with the same data.

    Args:
        binaries: the folder of `initdb` and `postgres`.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self.password = secrets.token_urlsafe(18)
        self.port = _free_port()
        # Not below a folder that only our own user may enter, as pytest's.
        self._folder = Path(tempfile.mkdtemp(prefix="ckd-postgres-"))
        atexit.register(self.close)
        self._user = _unprivileged()
        self._initialise()

    @property
    def url(self) -> str:
        """Of the database that every server has, password included."""
        return self._url("postgres")

    def new_database(self) -> str:
        """The URL of an empty database, password included."""
        name = f"ledger_{next(self._numbers)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._url(name)

    def start(self) -> None:
        """Start it, and return when it answers."""
        assert self._process is None, "it is running"
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._folder / "socket",
            "max_connections": 50,
            "shared_buffers": "16MB",
            # Otherwise a process each minute for each database, of which there are hundreds that live for a second.
            "autovacuum": "off",
        }
        if sys.platform == "linux":
            # What a crash left is brought to the disk at once, instead of file by file of all databases.
            settings["recovery_init_sync_method"] = "syncfs"
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C is for whoever started the server, and then stops it.
                start_new_session=True,
                **self._as_user(),
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start:\n{(self._folder / 'log').read_text()[-2000:]}")
            # Each time a process of the server answers that it is starting.
            time.sleep(0.1)

    def stop(self, mode: str = "fast") -> None:
        """Stop it: "smart" waits for its clients, "fast" rolls them back, "immediate" is like a crash."""
        if self._process is not None:
            self._process.send_signal(_STOP_SIGNALS[mode])
            self._process.wait(timeout=60)
            self._process = None

    def close(self) -> None:
        """Stop it for good, and remove all it wrote."""
        self.stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.close)

    def _url(self, database: str) -> str:
        return f"postgresql://{_USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def _initialise(self) -> None:
        password = self._folder / "password"
        password.write_text(self.password)
        (self._folder / "socket").mkdir()
        for path in (self._folder, password, self._folder / "socket"):
            if self._user is not None:
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        # What is made here need not survive a power cut; what the server writes later is fsynced as ever.
        options = ("--no-sync", "--no-instructions", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256")
        made = subprocess.run(
            [self._binaries / "initdb", "-D", self._folder / "data", "-U", _USER, f"--pwfile={password}", *options],
            capture_output=True,
            text=True,
            check=False,
            **self._as_user(),
        )
        password.unlink()
        if made.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{made.stdout}{made.stderr}")

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _as_user(self) -> dict[str, object]:
        """Options of a subprocess that runs as the server's user, from a folder that this user may enter."""
        if self._user is None:
            return {"cwd": self._folder}
        return {"cwd": self._folder, "user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom the server has to run as; None for ourselves."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
