"""Attention with inner widths of its own, in the place of code that fixes them."""
