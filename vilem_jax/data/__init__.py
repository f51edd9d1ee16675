"""Bytes on disk -> host batches: uint8 pictures and int32 tokens. No JAX, no model."""
