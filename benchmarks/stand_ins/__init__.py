"""What benchmarks and tests both stand on, in place of what nobody pays for: a store, a grid, a database server."""
