"""What may name a container, an exec or a namespace, and how long labels may be. Pure."""

import re

from daemon.errors import invalid_argument

# containerd's rule: alphanumeric runs joined by single '.', '_' or '-'; so an id is always a safe path component.
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*", re.ASCII)
MAX_IDENTIFIER_LENGTH = 76  # containerd's; leaves room for a hash beside it within the 108 bytes of a socket path
MAX_LABEL_BYTES = 4096  # containerd's limit for key and value together
_TOPIC_PART = _IDENTIFIER


def require_identifier(value: str, what: str) -> str:
    """The value itself when it may be an id.

    Raises: InvalidArgument, naming ``what`` it should have been.
    """
    if not value:
        raise invalid_argument(f"{what} must not be empty")
    if len(value) > MAX_IDENTIFIER_LENGTH:
        raise invalid_argument(
            f"{what} {value[:20]!r}… is {len(value)} characters long, at most {MAX_IDENTIFIER_LENGTH} are allowed"
        )
    if not _IDENTIFIER.fullmatch(value):
        raise invalid_argument(
            f"{what} {value!r} must be letters and digits, joined by single '.', '_' or '-' between them"
        )
    return value


def require_labels(labels: "dict[str, str]") -> None:
    """Refuse labels too long to be kept, as containerd does.

    Raises: InvalidArgument naming the key.
    """
    for key, value in labels.items():
        size = len(key.encode()) + len(value.encode())
        if size > MAX_LABEL_BYTES:
            raise invalid_argument(
                f"label {key[:64]!r}: key and value are {size} bytes, at most {MAX_LABEL_BYTES} are allowed"
            )


def require_topic(topic: str) -> str:
    """The topic itself when it is ``/part/part…`` with each part an identifier.

    Raises: InvalidArgument.
    """
    parts = topic.split("/")
    if len(parts) < 3 or parts[0] or not all(_TOPIC_PART.fullmatch(part) for part in parts[1:]):
        raise invalid_argument(f"topic {topic!r} must look like /tasks/exit: a slash before each of two or more parts")
    return topic
