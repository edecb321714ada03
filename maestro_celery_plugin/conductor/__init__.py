"""The part of the package that runs in Maestro's conductor process."""
