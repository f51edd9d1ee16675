"""Whole runs on sixty drawn images, in this process or in one that may be killed.

As a script: `python -m tests.training.tiny_runs SETTINGS.json WORKDIR SECONDS` trains,
and takes its time after each record.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vilem_jax.config.freeze import freeze
from vilem_jax.config.sources import ScenesConfig
from vilem_jax.data.sources.source import open_source
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.workdir import read_config
from vilem_jax.training.run import train
from vilem_jax.training.state import abstract_state

SCENES = {"kind": "scenes", "split": "train", "num_images": 60}
HELD_OUT = {"kind": "scenes", "split": "validation", "num_images": 12}
NUM_STEPS, SAVE_EVERY = 14, 5


def write_vocabulary(folder: Path) -> Path:
    source = open_source(ScenesConfig(name="scenes", split="train", num_images=60))
    captions = [text for i in range(len(source)) for text in source.captions(i)]
    train_vocabulary(captions, 200, folder)
    return folder


def run_settings(task: str, start: Path, **sections: dict) -> dict[str, Any]:
    """Settings of a run of seconds.

    Args:
      start: a vocabulary for task "editor", the trained editor for "vilem".
      sections: merged into the sections of the same name.
    """
    tower = {"width": 32, "num_layers": 2, "num_heads": 2, "mlp_width": 32}
    text = {"start_from": str(start)}
    if task == "editor":
        size = Tokenizer(start).vocabulary.size
        text = {"vocab_size": size, "max_positions": 24, **tower}
    settings = {
        "task": task,
        "data": {
            "train": {"scenes": SCENES},
            "tokenizer": str(start),
            "text_length": 16,
        },
        "model": {
            "vision": {"image_size": 32, "patch_size": 16, **tower},
            "text": text,
            "num_proofread_layers": 1,
            "embedding_width": 16,
            "init_std": 0.0,
        },
        "loss": {"queue_length": 20},
        "optimizer": {"warmup_steps": 2, "learning_rate": 1e-3},
        "train": {"batch_size": 16, "num_steps": NUM_STEPS},
        "compute": {"dtype": "float32"},
        "evaluation": {"text_length": 16, "batch_size": 8, "num_proofread_images": 6},
        "log": {"every_steps": 1, "tensorboard": False},
        "checkpoint": {"every_steps": SAVE_EVERY},
    }
    if task == "vilem":
        settings["editor"] = {"path": str(start)}
    for name, section in sections.items():
        settings[name] = {**settings.get(name, {}), **section}
    return settings


def child_environment(num_devices: int = 1) -> dict[str, str]:
    """For a process of its own, which shares what the tests have compiled."""
    count = f"--xla_force_host_platform_device_count={num_devices}"
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}",  # of two counts the last
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def stored_state(workdir: Path) -> tuple[dict[str, np.ndarray], int]:
    """Every array of the newest checkpoint by name, and its step."""
    target = abstract_state(read_config(workdir))
    with Checkpoints(workdir) as checkpoints:
        state, step = checkpoints.restore_latest(target)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }, step


def assert_same_run(found: Path, expected: Path) -> None:
    """State and metrics, bit for bit."""
    ours, our_step = stored_state(found)
    theirs, their_step = stored_state(expected)
    assert our_step == their_step and set(ours) == set(theirs)
    different = [n for n in ours if ours[n].tobytes() != theirs[n].tobytes()]
    assert not different
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (found, expected)]
    assert metrics[0] == metrics[1]


def main(settings: str, workdir: str, seconds: str) -> None:
    train(
        freeze(json.loads(Path(settings).read_text())),
        workdir,
        hooks=[lambda step, record: time.sleep(float(seconds))],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
