"""What is done to a prompt before it is encoded: weights, wildcards, styles and LLM enhancement."""
