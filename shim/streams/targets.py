"""What a stdio URI asks for, as a value. Pure: nothing is opened here."""

from shim.errors import invalid_argument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ttrpc.errors import StatusError

NOTHING = "nothing"  # ""                 /dev/null
CLIENT = "client"  # /absolute/path     a FIFO (or file) of the client's
FILE = "file"  # file:///path       raw bytes appended to a file that is not ours
LOG = "log"  # log:///path?…      a log file this shim owns and rotates
ATTACH = "attach"  # attach:            attach streams only
BINARY = "binary"  # binary:///path?k=v a program of the client's that reads the output

JSON = "json"
RAW = "raw"
BLOCK = "block"
DROP = "drop"

DEFAULT_MAX_FILES = 5  # the active file and four older ones, when max-size asks for rotation and max-files says nothing
LOWEST_MAX_SIZE_BYTES = 4096  # below this every other write would rotate

_LOG_OPTIONS = ("format", "max-size", "max-files", "mode")


class StdioRequest:
    """What Create or Exec asks for."""

    __slots__ = ("stderr", "stdin", "stdout", "terminal")

    def __init__(self, stdin: str = "", stdout: str = "", stderr: str = "", *, terminal: bool = False) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = terminal


class Target:
    """Where one stream goes or comes from. Equal targets are the same place, kept the same way."""

    __slots__ = ("arguments", "format", "kind", "max_files", "max_size_bytes", "mode", "path", "says_ready")

    def __init__(
        self,
        kind: str,
        path: str = "",
        *,
        format: str = RAW,  # noqa: A002 - the option's own name
        max_size_bytes: int = 0,
        max_files: int = DEFAULT_MAX_FILES,
        mode: str = BLOCK,
        arguments: "tuple[str, ...]" = (),
        says_ready: bool = False,
    ) -> None:
        self.kind = kind
        self.path = path
        self.format = format
        self.max_size_bytes = max_size_bytes
        self.max_files = max_files
        self.mode = mode
        self.arguments = arguments  # of a log program, and whether it must say that it is ready
        self.says_ready = says_ready

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Target):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.kind, self.path))

    def __repr__(self) -> str:
        return f"Target({self.kind}, {self.path!r})"


def parse(field: str, uri: str) -> Target:
    """Read one URI; ``field`` (stdin, stdout, stderr) names it in errors.

    Raises: StatusError InvalidArgument.
    """
    if uri == "":
        return Target(NOTHING)
    if uri.startswith("/"):
        if "\0" in uri:
            raise _invalid(field, uri, "a path cannot hold a zero byte")
        return Target(CLIENT, uri)
    scheme, colon, rest = uri.partition(":")
    if not colon:
        raise _invalid(field, uri, "use an absolute path or one of attach:, log://, file://, binary://")
    if scheme == "attach":
        if rest:
            raise _invalid(field, uri, "attach: takes nothing after the colon")
        return Target(ATTACH)
    if scheme not in ("file", "log", "binary", "binary-v2"):
        raise _invalid(
            field, uri, f"unknown scheme {scheme!r}; use attach:, log://, file://, binary:// or an absolute path"
        )
    if field == "stdin":
        raise _invalid(field, uri, "input comes from an absolute path or attach:")
    path, _, query = rest.partition("?")
    if not path.startswith("///"):
        raise _invalid(field, uri, f"write {scheme}:///absolute/path")
    path = _unquote(path[2:])
    if path.endswith("/") or "\0" in path:
        raise _invalid(field, uri, "the path must name a file")
    if scheme == "file":
        return Target(FILE, path)
    if scheme != "log":
        return Target(BINARY, path, arguments=_arguments(query), says_ready=scheme == "binary-v2")
    return _log(field, uri, path, query)


def parse_all(stdin: str, stdout: str, stderr: str, *, terminal: bool) -> "tuple[Target, Target, Target]":
    """The targets of one process, checked against each other. With a terminal stderr is not used.

    ``log:``, ``file:`` and ``binary:`` in stdout take both streams, so stderr must be empty or equal there.
    """
    source, out = parse("stdin", stdin), parse("stdout", stdout)
    if terminal:
        return source, out, Target(NOTHING)
    err = parse("stderr", stderr)
    if out.kind in (LOG, FILE, BINARY):
        if err.kind != NOTHING and err != out:
            raise _invalid(
                "stderr", stderr, f"one {out.kind}: takes both streams; leave stderr empty or equal to stdout"
            )
        err = out
    elif err.kind in (LOG, FILE, BINARY):
        raise _invalid("stderr", stderr, f"{err.kind}: belongs into stdout, where it takes both streams")
    return source, out, err


def _log(field: str, uri: str, path: str, query: str) -> Target:
    options = {"format": JSON, "max-size": "0", "max-files": str(DEFAULT_MAX_FILES), "mode": BLOCK}
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if name not in options or not equals:
            raise _invalid(field, uri, f"unknown option {pair!r}; known: {', '.join(_LOG_OPTIONS)}")
        options[name] = _unquote(value)
    if options["format"] not in (JSON, RAW):
        raise _invalid(field, uri, "format is json or raw")
    if options["mode"] not in (BLOCK, DROP):
        raise _invalid(field, uri, "mode is block or drop")
    max_size_bytes = _number(field, uri, "max-size", options["max-size"], 0)
    if 0 < max_size_bytes < LOWEST_MAX_SIZE_BYTES:
        raise _invalid(field, uri, f"max-size is 0 (never rotate) or at least {LOWEST_MAX_SIZE_BYTES} bytes")
    return Target(
        LOG,
        path,
        format=options["format"],
        max_size_bytes=max_size_bytes,
        max_files=_number(field, uri, "max-files", options["max-files"], 1),
        mode=options["mode"],
    )


def _arguments(query: str) -> "tuple[str, ...]":
    """A log program's: each key and its value, in the order of the query; of a key that comes again the first counts.

    Source: how Go's net/url reads a query, so that what clients wrote for containerd's shim means the same.
    """
    values: dict[str, str] = {}
    for pair in query.split("&"):
        name, _, value = pair.replace("+", " ").partition("=")
        if pair:
            values.setdefault(_unquote(name), _unquote(value))
    return tuple(word for item in values.items() for word in item)


def _number(field: str, uri: str, name: str, text: str, lowest: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18) or int(text) < lowest:
        raise _invalid(field, uri, f"{name} is a whole number from {lowest}")
    return int(text)


def _unquote(text: str) -> str:
    """Undo percent-encoding (RFC 3986 §2.1); a stray percent sign stands for itself."""
    if "%" not in text:
        return text
    first, *rest = text.encode("utf-8", "surrogateescape").split(b"%")
    out = bytearray(first)
    for part in rest:
        try:
            out += bytes.fromhex(part[:2].decode("ascii")) if len(part) >= 2 and part[:2].isalnum() else b"%" + part[:2]
        except ValueError:
            out += b"%" + part[:2]
        out += part[2:]
    return out.decode("utf-8", "surrogateescape")


def _invalid(field: str, uri: str, why: str) -> "StatusError":
    return invalid_argument(f"{field} {uri!r}: {why}")
