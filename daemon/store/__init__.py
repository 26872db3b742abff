"""What must survive the daemon: SQLite, one writer, numbered migrations."""
