"""Figures, the HTML report, and the demo that fills it."""
