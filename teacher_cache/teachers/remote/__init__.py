"""Clients of teachers behind a network: one request an attempt; what is owed, and asked again, is the builder's."""
