"""Pretraining of the bundled model on scenes: objects on backgrounds, with captions that say what is where."""
