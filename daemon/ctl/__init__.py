"""shimctl: a client only; imports no trio."""
