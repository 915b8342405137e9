"""Scenes of emoji, drawn by a grammar that writes their captions, and their evaluation."""
