"""What every part stands on and that knows no container: the poll loop and its steps, the reaper, kernel, pipes."""
