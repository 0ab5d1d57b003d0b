"""What lies between the stages: the store, the call ledger, and what both stages say and draw alike."""
