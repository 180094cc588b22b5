"""Measuring: metrics and simulated users."""
