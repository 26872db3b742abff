"""The keeper: one process that has the code of a shim in memory, forks shims, and sees to those that die."""
