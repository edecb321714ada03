"""The settings of a specification, as verified values."""
