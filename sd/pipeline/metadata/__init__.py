"""Settings inside images: the formats of other programs, and infotext to settings and back."""
