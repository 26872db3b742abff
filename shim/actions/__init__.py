"""What containerd executes and waits for: start, delete, -info, and what they are told on stdin. They import little."""
