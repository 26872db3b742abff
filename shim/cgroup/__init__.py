"""Control groups: which are the container's, what it uses, and when the kernel kills for memory."""
