"""What a specification says, as verified values."""
