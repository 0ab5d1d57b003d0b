"""What lies between the stages: the store and the call ledger."""
