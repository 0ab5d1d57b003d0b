"""What the work costs against the bare minimum it could cost."""
