"""The administration API and page."""
