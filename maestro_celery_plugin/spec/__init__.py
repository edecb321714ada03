"""Reading and checking a specification."""
