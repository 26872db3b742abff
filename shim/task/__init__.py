"""The container's life: what may be asked of it and when, its processes, and how each came to its end."""
