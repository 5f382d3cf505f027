"""Wire formats, pure: bytes in, facts out."""
