"""User-mode Linux: a kernel of one's own, as a process, for what the host's kernel lacks."""
