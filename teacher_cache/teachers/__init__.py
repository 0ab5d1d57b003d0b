"""Teachers: whatever answers for views, behind one contract; the benchmark's zoo is the first kind."""

from __future__ import annotations

from teacher_cache.teachers.classes import ClassChoice
from teacher_cache.teachers.contract import Answers, Card, Teacher
from teacher_cache.teachers.zoo import TeacherSource, ZooTeacher, open_teacher, untrained_teacher

__all__ = [
    "Answers",
    "Card",
    "ClassChoice",
    "Teacher",
    "TeacherSource",
    "ZooTeacher",
    "open_teacher",
    "untrained_teacher",
]
