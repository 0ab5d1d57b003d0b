"""Builders of one store in many processes: they divide the work by the ledger, whoever starts them."""
