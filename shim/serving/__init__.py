"""The serving process: its parts put together, its sockets and services, its journal and who is told of it."""
