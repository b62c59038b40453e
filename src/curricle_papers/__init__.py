"""Figures and theory of the two papers, on top of curricle."""
