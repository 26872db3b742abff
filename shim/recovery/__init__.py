"""A shim is dead, its container is not: what it left for a successor, and how that one takes over."""
