"""Figures, one file per kind; `style` holds what they share."""
