"""A worker: the process in an allocation that runs samples."""
