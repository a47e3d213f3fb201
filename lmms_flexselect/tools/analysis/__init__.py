"""What selection sees: which layer finds a needle, and how its tokens lie among the others (paper, section 3.1)."""
