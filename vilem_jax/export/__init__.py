"""Exports of trained models: model folders, Hugging Face, StableHLO, ONNX."""
