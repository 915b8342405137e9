"""The figures of the tour, one module per chapter, each with a dict FIGURES of name -> function (Models) -> Figure."""
