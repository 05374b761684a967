"""The last layer, narrowed: the wanted rows are those of the whole layer, in every native class."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor

from diffusiongpt.engine.attention import PACKED_ATTENTION
from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.families import FAMILIES
from diffusiongpt.engine.last_layer import narrow_last_layer

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CLASSES = sorted({family.native for family in FAMILIES.values()} | {"Qwen3MoeForCausalLM"})


@pytest.mark.parametrize("name", CLASSES)
def test_the_wanted_rows_are_those_of_the_whole_layer(name):
    torch.manual_seed(0)
    native = getattr(transformers, name)
    known = native.config_class().to_dict()
    config = native.config_class(**{key: value for key, value in SMALL.items() if key in known})
    network = native._from_config(config, attn_implementation=PACKED_ATTENTION).eval()
    ids, positions = torch.arange(5, 25)[None], torch.arange(20)[None] % 12
    plan = AttentionPlan(lengths=(12, 8), block_length=4)

    def run(**wanted: Tensor) -> Tensor:
        output = network.base_model(
            input_ids=ids, position_ids=positions, use_cache=False, attention_plan=plan, **wanted
        )
        return output.last_hidden_state[0]

    with torch.inference_mode():
        whole = run()
        assert narrow_last_layer(network)
        for wanted in ([3, 3, 19, 0], [7], []):
            rows = torch.tensor(wanted, dtype=torch.long)
            torch.testing.assert_close(run(wanted=rows), whole[rows])
        torch.testing.assert_close(run(), whole)


def test_a_layer_of_another_form_is_left_alone():
    # Gemma2's layers have norms after attention, too.
    known = transformers.Gemma2Config().to_dict()
    config = transformers.Gemma2Config(**{key: SMALL[key] for key in SMALL if key in known})
    assert not narrow_last_layer(transformers.Gemma2ForCausalLM._from_config(config))
