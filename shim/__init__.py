"""The shim: one process per container. SHIM.md is its manual; __main__ its only door."""
