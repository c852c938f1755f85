"""Functionals of measures, their Wasserstein gradient flow, its second variation and spectrum."""
