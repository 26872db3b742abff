"""`shimctl doctor`: looks at a host, explains what it finds, and repairs what is provably ours and dead."""
