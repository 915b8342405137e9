"""The HTTP API of AUTOMATIC1111's webui."""
