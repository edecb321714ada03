"""Reading a study for people and scripts."""
