"""The subcommands of `ckd-cache`, one a module: parse, call the library, print."""
