"""Bytes on disk -> host batches: uint8 images and int32 tokens. No JAX, no model."""
