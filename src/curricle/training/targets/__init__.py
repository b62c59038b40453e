"""Capture and verification of stored targets."""
