"""`vilem plan` on the command line."""

import json

import pytest

from vilem_jax.cli.main import main
from vilem_jax.planning import compiled

PLAN = ["plan", "--config=pretrain_cc4m"]


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([*PLAN, *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_plan_is_printed_and_written_as_json(capsys, tmp_path):
    out = tmp_path / "new" / "plan.json"
    code, text, err = run(
        capsys, "--device=h200", f"--out={out}", "--config.editor.max_edits=5"
    )
    assert (code, err) == (0, "")
    assert "211.7 M trained" in text and "with nothing saved" in text
    assert "prediction, not a measurement: 1,640 pairs/s" in text  # 395e12 / 240.91e9
    assert "20 epochs of 5,100,000 pairs: 17.3 hours" in text
    plan = json.loads(out.read_text())
    assert plan["overrides"] == {"editor.max_edits": "5"}
    parts = plan["gflop_a_pair"]["parts"].values()
    assert sum(parts) == pytest.approx(plan["gflop_a_pair"]["sum"])
    assert plan["compiled"] is None


def test_microbatches_make_the_batch_fit(capsys):
    _, text, _ = run(capsys, "--device=h200")
    assert "DOES NOT FIT 141.00 GB" in text
    needed = text.partition("fewest microbatches for this batch: ")[2].split()[0]
    settings = f"--config.train.num_microbatches={needed}"
    _, text, _ = run(capsys, "--device=h200", settings)
    assert "fits 141.00 GB" in text and "DOES NOT" not in text


def test_given_pairs_set_the_hours(capsys):
    _, text, _ = run(capsys, "--device=a100-32", "--pairs=1e6")
    assert "20 epochs of 1,000,000 pairs" in text
    assert "all-reduce" in text and "4.2" in text  # MB of keys


def test_the_devices_of_this_machine_are_the_default(capsys, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    code = main(["plan", "--config=flickr8k_cpu"])
    text = capsys.readouterr().out
    assert code == 0 and "flickr8k_cpu on cpu: 1 chip" in text
    assert "at 50 % of 1 x 0.384 TFLOP/s" in text  # 4 cores x 32 FLOP x 3 GHz
    assert "the run, 1,000 steps: 37 min" in text


def test_minutes_need_steps_or_pairs(capsys):
    plan = ["plan", "--config=one_gpu_24gb", "--device=rtx4090"]
    assert main(plan) == 0
    assert "for the time of the run say --pairs=N" in capsys.readouterr().out
    assert main([*plan, "--pairs=50000"]) == 0
    assert "the run, 3,900 steps: " in capsys.readouterr().out


def test_without_libtpu_a_note_names_the_package(capsys, monkeypatch):
    monkeypatch.setattr(compiled, "has_libtpu", lambda: False)
    code, text, _ = run(capsys, "--device=v5e-16")
    assert code == 0 and "16 chips" in text
    assert "pip install 'vilem-jax[tpu]'" in text
    code, _, err = run(capsys, "--device=v5e-16", "--compile")
    assert code == 2 and "compiling for v5e:4x4 needs libtpu" in err


def test_unknown_device_is_refused_with_the_known_ones(capsys):
    code, out, err = run(capsys, "--device=h300")
    assert (code, out) == (2, "")
    assert "there is no device 'h300', the nearest known is h200; known: h200" in err


@pytest.mark.parametrize("pairs", ["none", "0", "inf", "nan"])
def test_pairs_must_be_a_number_of_1_or_more(capsys, pairs):
    with pytest.raises(SystemExit):
        run(capsys, "--device=h200", f"--pairs={pairs}")
    assert "is not a number of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["editor", "scenes", "flickr8k", "finetune_coco"])
def test_other_configs_are_planned_without_their_data(capsys, name):
    code = main(["plan", f"--config={name}", "--device=h100"])
    text = capsys.readouterr().out
    assert code == 0 and "prediction, not a measurement" in text


def test_compiler_error_about_memory_becomes_a_sentence():
    sentence = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
        "memory space hbm. Used 21.50G of 15.75G hbm. Exceeded hbm capacity by 5.75G."
    )
    error = compiled.compiler_error(RuntimeError(sentence))
    assert isinstance(error, compiled.DoesNotFitError)
    assert error.used == 21.5 * 2**30 and error.limit == 15.75 * 2**30
    assert "needs 21.50GiB of a chip that has 15.75GiB" in str(error)
    other = compiled.compiler_error(RuntimeError("no such thing\nstack"))
    assert str(other) == "the compiler refused the step: no such thing"
