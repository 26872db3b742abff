"""The wire: the ttrpc protocol as a library of its own. Start at PROTOCOL.md, then frames, streams, connection."""
