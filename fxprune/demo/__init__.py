"""What does `fxprune demo` show? A network that learns to be sparse, becomes smaller, and stays the same."""
