"""A process that has no file descriptor left."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def no_free_fd() -> Iterator[None]:
    """In here, whatever needs a new descriptor fails with EMFILE. Open ones stay: getrlimit(2), RLIMIT_NOFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
