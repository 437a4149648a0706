"""Weights as codes: policies over any Quantizer that knows its input space."""
