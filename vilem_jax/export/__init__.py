"""Trained models for elsewhere: model folders, Hugging Face, StableHLO, ONNX."""
