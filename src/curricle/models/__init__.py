"""Models that can be read at taps and stopped early."""
