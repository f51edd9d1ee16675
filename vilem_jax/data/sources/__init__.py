"""Where image-caption pairs are read from, one file a kind."""
