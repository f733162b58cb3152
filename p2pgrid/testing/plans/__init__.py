"""Scenario files, and what one seed makes of them."""
