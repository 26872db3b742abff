"""How a daemon that is about to end says which calls it did not begin. Pure: daemon and shimctl share it."""

# google.rpc.ErrorInfo{reason: SHIMD_STOPPING, domain: shimd} among a status's details, as (type URL, bytes).
NOT_BEGUN = ("type.googleapis.com/google.rpc.ErrorInfo", b"\x0a\x0eSHIMD_STOPPING\x12\x05shimd")
