"""What a student learns from rows that it has no answer of the teacher for: labels, its own answers, a proxy's."""
