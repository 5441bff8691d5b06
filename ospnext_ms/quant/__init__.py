"""HiFloat8: the number format, the quantised layers, and weights stored in it."""
