"""Asking teachers that are elsewhere: many requests at once, retries, limits, canaries, and what is owed for them."""
