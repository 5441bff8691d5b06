"""VBench (arXiv 2311.17982): the videos it asks for, upstream's scores of them, and the total."""
