"""Index and query a folder of one's own images."""
