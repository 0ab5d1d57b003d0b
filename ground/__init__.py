"""What every room stands on: errors, terminal, durable files, seeds, views. Imports no other room."""
