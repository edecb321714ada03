"""Reports on a study, for users and scripts: its status, its failed samples, and explanations."""
