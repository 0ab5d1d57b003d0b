"""Stage two: store -> batches -> loss -> student -> run folder. Nothing here can reach a teacher."""
