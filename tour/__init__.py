"""The guided tour: chapters, the figures that the bundled model makes for them, and the builder of `docs/tour/`."""
