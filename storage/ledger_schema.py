"""What a ledger's database holds, against what this release makes in it, on SQLite and PostgreSQL.

That an input is paid for once, and that what is recorded stays, rests on the database: on a unique index, on columns of
one type, on the absence of triggers. So the whole schema is compared, piece by piece, each time a ledger is opened. A
piece is a name and a definition: of a table, a column, a constraint, an index, and of whatever else acts on them.
What is expected follows from the tables of the schema that the chain says it is of (`storage/ledger_migrations.py`).
All releases of one schema made the same pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from storage.ledger_migrations import recorded_schema, tables_of
from storage.ledger_tables import entries, metadata

_CONSTRAINTS = ("PRIMARY", "UNIQUE", "FOREIGN", "CHECK", "CONSTRAINT")
# Without these a query of ours fails, or gives values of other types.
_READ = ("table", "column")
_JOURNAL = (f"table {entries.name}", f"column {entries.name}.")
_OWN_TABLE = re.compile(r"sqlite_(sequence|stat[1-4])")


@dataclass(frozen=True, slots=True)
class Schema:
    """Pieces of a database: name -> definition.

    Args:
        found: what there is; of a file all of it, of a server what has the names of our tables, and acts on them.
        wanted: what releases of its schema made.
        version: of the schema, as the chain says, which may be anything; None where no chain can be read.
    """

    found: Mapping[str, str]
    wanted: Mapping[str, str]
    version: object = None

    @property
    def is_empty(self) -> bool:
        """Whether a ledger can be made there."""
        return not self.found

    def obstacles(self) -> list[str]:
        """Differences with which it cannot be read, in words: it is damaged, or another program's."""
        return [
            _in_words(piece, self.found.get(piece), definition)
            for piece, definition in self.wanted.items()
            if piece.startswith(_READ) and self.found.get(piece) != definition
        ]

    def differences(self) -> list[str]:
        """All differences, in words; with any, nothing is recorded."""
        pieces = sorted(self.wanted.keys() | self.found.keys())
        both = ((piece, self.found.get(piece), self.wanted.get(piece)) for piece in pieces)
        return [_in_words(piece, found, wanted) for piece, found, wanted in both if found != wanted]


def look_at_schema(connection: sa.Connection) -> Schema:
    """What is there, and what should be."""
    is_file = connection.dialect.name == "sqlite"
    made_of = _made_in_file if is_file else _made_on_server
    found = _of_file(connection) if is_file else _of_server(connection, [entries.name])
    journal = {piece: text for piece, text in made_of(metadata).items() if piece.startswith(_JOURNAL)}
    is_readable = all(found.get(piece) == definition for piece, definition in journal.items())
    version = recorded_schema(connection) if is_readable else None
    tables = tables_of(version).metadata
    if not is_file:
        found = _of_server(connection, [table.name for table in tables.sorted_tables])
    return Schema(found, made_of(tables), version)


def _of_server(connection: sa.Connection, tables: list[str]) -> dict[str, str]:
    """Of the tables with these names: a server's database may hold others."""
    return {str(piece): str(text) for piece, text in connection.execute(_OF_SERVER, {"tables": tables})}


def _in_words(piece: str, found: str | None, wanted: str | None) -> str:
    if found is None:
        return f"it has no {piece}"
    if wanted is None:
        return f"it has {piece}" + (f" ({found})" if found else "")
    return f"its {piece} is {found or 'not as it was'}, not {wanted}"


def _of_file(connection: sa.Connection) -> Mapping[str, str]:
    made = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master")
    return _pieces_in_file(tuple((kind, name, sql) for kind, name, sql in made))


# A build opens the same ledger several times, and all ledgers of one schema were made by the same statements.
@lru_cache(maxsize=16)
def _pieces_in_file(made: tuple[tuple[str, str, str | None], ...]) -> Mapping[str, str]:
    """SQLite keeps the statements that made things, and goes by them: they are compared without their spaces."""
    pieces: dict[str, str] = {}
    for kind, name, sql in made:
        # What SQLite makes itself: indexes of keys, and its own statistics. Anything else can take such a name too.
        if (kind == "index" and sql is None) or (kind == "table" and _OWN_TABLE.fullmatch(name)):
            continue
        statement = re.sub(r"\s*([(),])\s*", r"\1", " ".join((sql or "").split()))
        table = re.fullmatch(rf"CREATE TABLE {re.escape(name)}\((.*)\)(.*)", statement)
        if kind != "table" or table is None:
            pieces[f"{kind} {name}"] = statement.removeprefix("CREATE ")
            continue
        pieces[f"table {name}"] = table[2]
        for definition in _definitions(table[1]):
            word, _, rest = re.sub(r'^"(\w+)" ', r"\1 ", definition).partition(" ")
            if word.partition("(")[0] in _CONSTRAINTS:
                pieces[f"constraint {definition} on {name}"] = ""
            else:
                pieces[f"column {name}.{word}"] = rest
    return MappingProxyType(pieces)


def _definitions(body: str) -> Iterator[str]:
    """What lies between the commas of CREATE TABLE; a comma within parentheses is none of these."""
    first = depth = 0
    for place, sign in enumerate(body):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and not depth:
            yield body[first:place]
            first = place + 1
    yield body[first:]


@cache
def _made_in_file(metadata: sa.MetaData) -> Mapping[str, str]:
    engine = sa.create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            metadata.create_all(connection)
            return _of_file(connection)
    finally:
        engine.dispose()


@cache
def _made_on_server(metadata: sa.MetaData) -> Mapping[str, str]:
    """What `_OF_SERVER` finds of tables that were just made."""
    return dict(_pieces_on_server(metadata))


def _pieces_on_server(metadata: sa.MetaData) -> Iterator[tuple[str, str]]:
    dialect = postgresql.dialect()
    for table in metadata.sorted_tables:
        yield f"table {table.name}", ""
        for column in table.columns:
            kind = "bytea" if isinstance(column.type, sa.LargeBinary) else column.type.compile(dialect).lower()
            default = "" if column.server_default is None else f" DEFAULT {_default_of(column)}"
            yield f"column {table.name}.{column.name}", kind + ("" if column.nullable else " NOT NULL") + default
            for key in column.foreign_keys:
                there = f"{key.column.table.name}({key.column.name})"
                yield f"constraint FOREIGN KEY ({column.name}) REFERENCES {there} on {table.name}", ""
            if column.unique:
                yield f"constraint UNIQUE ({column.name}) on {table.name}", ""
        primary = ", ".join(column.name for column in table.primary_key)
        yield f"constraint PRIMARY KEY ({primary}) on {table.name}", ""
        for index in table.indexes:
            yield f"index {index.name}", _as_server_says(str(CreateIndex(index).compile(dialect=dialect)))


def _default_of(column: sa.Column[Any]) -> str:
    assert isinstance(column.server_default, sa.DefaultClause)
    return str(column.server_default.arg)


def _as_server_says(statement: str) -> str:
    """CREATE INDEX as pg_get_indexdef writes it, which all versions do alike for what our indexes have."""
    made, _, condition = statement.removeprefix("CREATE ").partition(" WHERE ")
    condition = re.sub(r"'(\w+)'", r"'\1'::text", condition.replace("!=", "<>"))
    # Of several conditions, each has its parentheses, and so have all of them together.
    condition = ") AND (".join(condition.split(" AND ")) if condition else ""
    condition = f"({condition})" if " AND " in condition else condition
    return made.replace(" (", " USING btree (", 1) + (f" WHERE ({condition})" if condition else "")


# Tables are those that a query finds by their names, in whichever schema they are.
_OF_SERVER = sa.text(
    """
    WITH ours AS (
        SELECT c.* FROM unnest(CAST(:tables AS text[])) AS named(name)
        JOIN pg_class c ON c.oid = to_regclass(named.name)
    )
    SELECT CASE relkind WHEN 'r' THEN 'table ' WHEN 'v' THEN 'view ' ELSE 'another thing called ' END || relname, ''
    FROM ours
    UNION ALL
    SELECT 'unlogged table ' || relname, '' FROM ours WHERE relpersistence <> 'p'
    UNION ALL
    SELECT 'row security on ' || relname, '' FROM ours WHERE relrowsecurity
    UNION ALL
    SELECT 'tables in several schemas', '' FROM ours HAVING count(DISTINCT relnamespace) > 1
    UNION ALL
    SELECT 'column ' || relname || '.' || attname,
        format_type(atttypid, atttypmod)
        || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
        || coalesce(' DEFAULT ' || pg_get_expr(adbin, adrelid), '')
        || CASE WHEN attidentity <> '' THEN ' IDENTITY' ELSE '' END
        || CASE WHEN attcollation <> typcollation THEN ' COLLATE ' || collname ELSE '' END
    FROM ours JOIN pg_attribute a ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
    JOIN pg_type t ON t.oid = atttypid
    LEFT JOIN pg_collation l ON l.oid = attcollation
    LEFT JOIN pg_attrdef ON adrelid = ours.oid AND adnum = attnum
    UNION ALL
    SELECT 'constraint ' || pg_get_constraintdef(k.oid) || ' on ' || relname, ''
    FROM ours JOIN pg_constraint k ON conrelid = ours.oid WHERE contype NOT IN ('n', 't')
    UNION ALL
    SELECT 'index ' || indexrelid::regclass::text,
        replace(substr(pg_get_indexdef(indexrelid), 8), ' ON ' || relnamespace::regnamespace || '.', ' ON ')
        || CASE WHEN indisvalid AND indisready THEN '' ELSE ', which is not valid' END
    FROM ours JOIN pg_index ON indrelid = ours.oid
    WHERE NOT (indisvalid AND indisready AND EXISTS (
        SELECT FROM pg_constraint WHERE conindid = indexrelid AND conrelid = indrelid AND contype IN ('p', 'u')))
    UNION ALL
    SELECT CASE WHEN tgisinternal THEN 'a disabled check of foreign keys' ELSE 'trigger ' || tgname END
        || ' on ' || relname, ''
    FROM ours JOIN pg_trigger ON tgrelid = ours.oid WHERE NOT tgisinternal OR tgenabled NOT IN ('O', 'A')
    UNION ALL
    SELECT 'rule ' || rulename || ' on ' || relname, ''
    FROM ours JOIN pg_rewrite ON ev_class = ours.oid WHERE relkind = 'r'
    UNION ALL
    SELECT 'policy ' || polname || ' on ' || relname, '' FROM ours JOIN pg_policy ON polrelid = ours.oid
    UNION ALL
    SELECT 'inheritance of ' || relname, '' FROM ours JOIN pg_inherits ON ours.oid IN (inhrelid, inhparent)
    """.replace("::", r"\:\:")
)
