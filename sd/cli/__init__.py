"""Shared code of the scripts: flags, running, and work in several processes."""
