"""Jobs: requests, the queue, the workers and the HTTP API /jobs."""
