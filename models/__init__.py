"""Pixels to predictions: preprocessing, suitability, networks, cards, bundles."""
