"""Every call of a loss function by these tests has the shapes that its docstring gives."""

from tests.student_train.losses.documented_shapes import enforce

# Before the tests' modules import the functions.
enforce()
