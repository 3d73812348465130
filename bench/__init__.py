"""Measurements of the product beside its peers, in one run: ``make bench``."""
