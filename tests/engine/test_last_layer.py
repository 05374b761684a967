"""The last layer, narrowed: the wanted rows are those of the whole layer, in every native class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusiongpt.engine.architectures import ARCHITECTURES
from diffusiongpt.engine.attention import PACKED_ATTENTION
from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.last_layer import narrow_last_layer
from diffusiongpt.engine.native import number_layers

from tiny_networks import tiny_network

MIXTURE = {"moe_intermediate_size": 8, "num_experts_per_tok": 2, "num_experts": 4}
MIXTURES = ["Glm4MoeForCausalLM", "Qwen3MoeForCausalLM"]
# The rest have norms after attention, one norm for both halves of a layer, or other parts.
NARROWED = {
    *("ArceeForCausalLM", "CwmForCausalLM", "Ernie4_5ForCausalLM", "EuroBertForMaskedLM"),
    *("GemmaForCausalLM", "GlmForCausalLM", "HeliumForCausalLM", "HunYuanDenseV1ForCausalLM"),
    *("LlamaForCausalLM", "MinistralForCausalLM", "Ministral3ForCausalLM", "MistralForCausalLM"),
    *("ModernBertForMaskedLM", "ModernBertDecoderForCausalLM", "OlmoForCausalLM"),
    *("Qwen2ForCausalLM", "Qwen3ForCausalLM", "SeedOssForCausalLM", "SmolLM3ForCausalLM"),
    "Starcoder2ForCausalLM",
    *MIXTURES,
}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MIXTURES])
def test_the_wanted_rows_are_those_of_the_whole_layer(name):
    network = tiny_network(name, **(MIXTURE if name in MIXTURES else {}))
    network.set_attn_implementation(PACKED_ATTENTION)
    number_layers(network)
    ids, positions = torch.arange(5, 25)[None], torch.arange(20)[None] % 12
    plan = AttentionPlan(lengths=(12, 8), block_length=4)

    def run(**wanted: Tensor) -> Tensor:
        output = network.base_model(
            input_ids=ids, position_ids=positions, use_cache=False, attention_plan=plan, **wanted
        )
        return output.last_hidden_state[0]

    with torch.inference_mode():
        whole = run()
        assert narrow_last_layer(network) == (name in NARROWED)
        if name not in NARROWED:
            return
        for wanted in ([3, 3, 19, 0], [7], []):
            rows = torch.tensor(wanted, dtype=torch.long)
            torch.testing.assert_close(run(wanted=rows), whole[rows])
        torch.testing.assert_close(run(), whole)
