"""lowprec."""
