"""All figures, by what they show; every function returns a matplotlib Figure and writes nothing."""

# Nothing here uses pyplot, which keeps every figure in memory until it is closed and looks for a display.
__all__ = ["CLASS_COLOURS", "FIGURE_DPI", "SIGNED_COLOURS"]

FIGURE_DPI = 100
"""Resolution at which figures are saved."""

# Orange and blue of Okabe & Ito (2008): distinguishable with all common colour vision deficiencies and in gray print.
CLASS_COLOURS = ("#d55e00", "#0072b2")
"""Of the positive and of the negative class."""

SIGNED_COLOURS = "PuOr_r"
"""Colour map of signed values: orange for class 0, like its curve, purple for class 1."""
