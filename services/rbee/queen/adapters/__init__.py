"""What the queen's ports are made of: HTTP, child processes, SSH, SQLite."""
