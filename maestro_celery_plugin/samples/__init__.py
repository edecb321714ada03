"""Sample tables and the directories of samples."""
