"""Noisy student training of RNN-T speech recognisers with soft-target distillation."""

__version__ = "0.1.0"
