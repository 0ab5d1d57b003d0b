"""Stage one: data set -> nested sample -> views -> teacher -> store."""
