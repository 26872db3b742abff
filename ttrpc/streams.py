"""THE table of stream states. It knows callers and callees, not which of them we are, and imports nothing.

A stream is one call. The caller begins it with a Request; what its flags say decides whether messages may follow.
There is no state in which only the callee is done: a callee that ends has ended the stream (as in ttrpc 1.2).
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# --- states
IDLE: "Final" = "IDLE"  # no request yet
UNARY: "Final" = "UNARY"  # one response is owed, nothing else may come
OPEN: "Final" = "OPEN"  # both may send messages
CALLER_DONE: "Final" = "CALLER_DONE"  # the callee may send messages, or end
DONE: "Final" = "DONE"  # nothing may be sent; whatever still arrives is late and ignored

STATES: "Final" = (IDLE, UNARY, OPEN, CALLER_DONE, DONE)

# --- facts: a frame was sent by its one side and so received by the other
REQUEST_UNARY: "Final" = "request_unary"  # Request, no flags
REQUEST_OPEN: "Final" = "request_open"  # Request, remote-open
REQUEST_CLOSED: "Final" = "request_closed"  # Request, remote-closed
CALLER_MESSAGE: "Final" = "caller_message"  # Data from the caller
CALLER_END: "Final" = "caller_end"  # Data with remote-closed from the caller
CALLEE_MESSAGE: "Final" = "callee_message"  # Data from the callee
CALLEE_END: "Final" = "callee_end"  # Data with remote-closed from the callee
RESPONSE: "Final" = "response"  # Response: an answer, an error, or a refusal
FORGOTTEN: "Final" = "forgotten"  # the caller no longer wants it; nothing is sent, the callee never learns

FACTS: "Final" = (
    REQUEST_UNARY,
    REQUEST_OPEN,
    REQUEST_CLOSED,
    CALLER_MESSAGE,
    CALLER_END,
    CALLEE_MESSAGE,
    CALLEE_END,
    RESPONSE,
    FORGOTTEN,
)

# state → fact → next state. A fact missing from a row may not happen in that state.
TABLE: "Final[dict[str, dict[str, str]]]" = {
    IDLE: {
        REQUEST_UNARY: UNARY,
        REQUEST_OPEN: OPEN,
        REQUEST_CLOSED: CALLER_DONE,
    },
    UNARY: {
        RESPONSE: DONE,
        FORGOTTEN: DONE,
    },
    OPEN: {
        CALLER_MESSAGE: OPEN,
        CALLER_END: CALLER_DONE,
        CALLEE_MESSAGE: OPEN,
        CALLEE_END: DONE,
        RESPONSE: DONE,
        FORGOTTEN: DONE,
    },
    CALLER_DONE: {
        CALLEE_MESSAGE: CALLER_DONE,
        CALLEE_END: DONE,
        RESPONSE: DONE,
        FORGOTTEN: DONE,
    },
    DONE: {},
}
