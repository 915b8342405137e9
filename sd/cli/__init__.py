"""What the scripts share: flags, running, and work in several processes."""
