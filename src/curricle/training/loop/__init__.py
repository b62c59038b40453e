"""Loop that executes a bound curriculum."""
