"""Further samplers, schedules, noise sources and denoisers, beside the ones of the textbook files."""
