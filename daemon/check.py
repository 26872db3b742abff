"""`shimd --check`: could this program serve with this configuration and this store? Nothing is touched."""

import json
import sqlite3
from typing import Any

from daemon.config import Config
from daemon.errors import StoreFailed
from daemon.handover import PROTOCOL
from daemon.store import schema
from daemon.version import VERSION


def findings(config: Config) -> dict[str, Any]:
    """What a daemon that is to be replaced wants to know of this program.

    Raises: NewerSchema; StoreFailed.
    """
    path = config.database_path
    try:
        found = schema.examine(path)
    except sqlite3.Error as error:
        raise StoreFailed(path, str(error)) from None
    schema.require_readable(found, path)
    writes = max(found.schema, schema.VERSION)
    oldest = found.oldest_reader if found.schema >= schema.VERSION else schema.oldest_reader()
    return {
        "version": VERSION,
        "handover": PROTOCOL,
        "store": path,
        "schema": found.schema,
        "reads_schema": schema.VERSION,
        "writes_schema": writes,
        "oldest_reader": oldest,
    }


def report(config: Config, *, as_json: bool) -> str:
    """The findings as one JSON object or as lines for people. Raises: what `findings` raises."""
    found = findings(config)
    if as_json:
        return json.dumps(found)
    schema_now = f"schema {found['schema']}" if found["schema"] else "not there yet"
    then = "" if found["writes_schema"] == found["schema"] else f" and makes it {found['writes_schema']}"
    return (
        f"shimd {found['version']}: configuration ok\n"
        f"store {found['store']}: {schema_now}; this program reads up to {found['reads_schema']}{then}\n"
        f"programs that read up to schema {found['oldest_reader']} or later can serve with it afterwards"
    )
