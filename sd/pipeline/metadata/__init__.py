"""Settings inside images, as every program writes them."""
