"""The commands of `ckd-train`, one a file."""
