"""The daemon's side of the shims: start, adopt, follow, forget."""
