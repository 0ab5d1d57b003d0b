"""What one input has been through, and whether it is asked for again."""

from __future__ import annotations

from dataclasses import dataclass

from storage.bill import Billed, FailureKind
from teacher_cache.remote.policy import RetryPolicy
from teacher_cache.teachers.attempts import Failure


@dataclass(slots=True)
class Tally:
    """What one input has been through in this build."""

    failures: int = 0
    unknowns: int = 0

    def count(self, failure: Failure) -> None:
        """Add an attempt that gave no answer."""
        if failure.kind is not FailureKind.RATE_LIMITED:
            self.failures += 1
        if failure.billed is not Billed.NO:
            self.unknowns += 1

    def verdict(self, failure: Failure, policy: RetryPolicy) -> str | None:
        """Why the build ends with this failure; None where the input is asked for again."""
        if failure.is_final:
            return f"{failure.why}; asking again cannot help"
        if self.unknowns > policy.unknowns:
            many = f"{self.unknowns} attempts" if self.unknowns > 1 else "an attempt"
            return f"{many} for one image may have been billed without an answer, the last because {failure.why}"
        if self.failures >= policy.attempts:
            return f"{self.failures} attempts for one image failed, the last because {failure.why}"
        return None
