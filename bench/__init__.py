"""One script per promise; each measures ours beside a peer, in the same run. Method: README.md."""
