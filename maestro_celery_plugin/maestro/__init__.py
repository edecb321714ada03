"""Everything that touches Maestro."""
