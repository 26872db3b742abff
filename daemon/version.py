"""The version this daemon reports; tests/house compares it with pyproject.toml."""

VERSION = "0.1.0"
REVISION = "0.1.0"
