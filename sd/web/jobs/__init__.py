"""Jobs: requests, the queue, the worker that does them, and their own HTTP API."""
