"""Fresh encoders leave a model's text as it was, and adapters beside an encoder travel with its projector."""

import dataclasses

import numpy as np
import pytest

from lm.adapt import lora
from lm.adapt.rebuild import arrays_of, with_towers
from lm.config import Adapter, Audio, Vision
from lm.convert.peft import export_peft
from lm.errors import UserError
from tests.lm.adapt.models import TINY, logits
from tests.lm.examples import parameters

SIZES = dict(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=24)
TOWERS = {
    "vision": Vision(**SIZES, image_size=8, patch_size=4, projector="mlp", token_id=1),
    "audio": Audio(**SIZES, num_mels=4, num_frames=8, stack=2, token_id=2),
}


def test_text_stays_the_same_to_the_bit():
    params = parameters(TINY)
    config, seeing = with_towers(TINY, params, TOWERS)
    assert config == dataclasses.replace(TINY, **TOWERS)
    assert {name.split(".")[0] for name in arrays_of(seeing).keys() - arrays_of(params).keys()} == {"vision", "audio"}
    np.testing.assert_array_equal(logits(config, seeing), logits(TINY, params))


def test_an_adapter_leaves_the_projectors_as_they_are(tmp_path):
    base_config, base = with_towers(TINY, parameters(TINY), TOWERS)
    config, params = lora.with_adapter(base_config, base, Adapter(rank=2, targets=".*"))
    before = arrays_of(base)
    for name, x in arrays_of(params).items():
        if name in before:  # also the projectors: only their adapters would be fresh, and they have none
            np.testing.assert_array_equal(x, before[name], err_msg=name)
    assert not any("projector" in name and "lora" in name for name in arrays_of(params))
    with pytest.raises(UserError, match="PEFT has no place for the projector"):
        export_peft(tmp_path / "peft", config, params)
