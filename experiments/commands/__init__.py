"""The subcommands of `ckd-pipeline` about grids, one a module: parse, call, print."""
