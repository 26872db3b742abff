"""Standard streams: from a process to logs, FIFOs, log programs and attached clients, and back to its stdin."""
