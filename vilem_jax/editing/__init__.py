"""The frozen editor at work: captions in, plausible wrong captions out."""
