"""The original diffusionGPT's Hugging Face pipeline, on this engine.

>>> from diffusiongpt.engine.pipeline import TextDiffusionPipeline  # registers the task
>>> pipe = transformers.pipeline("text-diffusion", model=FOLDER)
>>> pipe("Once upon a time", num_steps=32)["decoded_texts"][0]

The names, defaults and results are the original's; the sampler is not. Positions are ranked by
their distribution and only then drawn, the canvas has the length of the answer, nothing of the
prompt is ever overwritten, `stop_token` ends the text wherever it is given, and several prompts
are denoised together.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils.chat_template_utils import Chat

from diffusiongpt.engine.config import EngineConfig
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import EngineFailure, InvalidRequest, LoadError
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.loader import adopt_network
from diffusiongpt.engine.params import seeds_of
from diffusiongpt.engine.pipeline_options import PipelineOptions, params_of
from diffusiongpt.engine.request import Request

TASK = "text-diffusion"


class TextDiffusionPipeline(Pipeline):
    """Completes texts, or chats, by denoising; see `PipelineOptions` for what a call takes.

    Raises:
        LoadError: the model is not a diffusion model that the engine knows.
        InvalidRequest: a call cannot be honoured; nothing was started.
    """

    tokenizer: Any

    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False

    def __init__(self, model: Any, tokenizer: Any = None, **settings: Any) -> None:
        if tokenizer is None:
            raise LoadError(f"the pipeline {TASK} needs a tokenizer, got None")
        super().__init__(model=model, tokenizer=tokenizer, **settings)
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        loaded = adopt_network(self.model, self._vocabulary)
        self.engine = Engine(loaded, None, EngineConfig(device=str(loaded.device)))
        self._mask_token_id = loaded.mask_token_id
        self._stop_token_ids = loaded.stop_token_ids

    def stream_generation(self, input_text: str, **options: Any) -> Generator[str, None, None]:
        """The text so far, masks included, after each denoising step."""
        chosen = self._options(options)
        self._refuse_block_size(chosen)
        yield from self._stream(input_text, chosen, by_blocks=False)

    def semi_autoregressive_generate(self, input_text: str, **options: Any) -> dict[str, Any]:
        """Complete a text block by block, which may go beyond the model's context."""
        prompt = self._encode(input_text)
        (result,) = self._complete([prompt], self._options(options), by_blocks=True)
        return self.postprocess(result)

    def stream_semi_autoregressive_generate(
        self, input_text: str, **options: Any
    ) -> Generator[str, None, None]:
        """The text up to the end of the block being denoised, after each denoising step."""
        yield from self._stream(input_text, self._options(options), by_blocks=True)

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        """Token ids (1, P) of a text or a chat."""
        return {"input_ids": torch.tensor([self._encode(input_)], dtype=torch.long)}

    def postprocess(self, model_outputs: Any, **_: Any) -> dict[str, Any]:
        """`decoded_texts`, prompt included; `final_ids` (1, L); `history`, the ids after each
        step."""
        return {
            "decoded_texts": [self._decode(model_outputs["final_ids"])],
            "history": model_outputs["history"],
            "final_ids": model_outputs["final_ids"],
        }

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """The results of several inputs in order, as many at once as the engine has slots.

        Lists of results come of lists, as in every pipeline; the slots batch them, so that
        `num_workers` and `batch_size` have nothing to do.
        """
        options = self._options(forward_params)
        self._refuse_block_size(options)
        waiting = iter(inputs)
        done = 0
        while group := [
            self._encode(each) for each in islice(waiting, self.engine.config.num_slots)
        ]:
            for result in self._complete(group, options, by_blocks=False, first=done):
                yield self.postprocess(result)
            done += len(group)

    def _sanitize_parameters(
        self, **given: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        self._options(given)
        return {}, given, {}

    def _forward(self, input_tensors: dict[str, Any], **options: Any) -> Any:
        prompt = input_tensors["input_ids"][0].tolist()
        chosen = self._options(options)
        self._refuse_block_size(chosen)
        (result,) = self._complete([prompt], chosen, by_blocks=False)
        return result

    def _options(self, given: dict[str, Any]) -> PipelineOptions:
        known = [field.name for field in fields(PipelineOptions)]
        for name in given:
            if name not in known:
                raise InvalidRequest(f"a call may have {', '.join(known)}, got {name!r}", name)
        return PipelineOptions(**given)

    def _refuse_block_size(self, options: PipelineOptions) -> None:
        if options.block_size is not None:
            raise InvalidRequest(
                "block_size belongs to the semi-autoregressive methods; a call denoises the "
                f"canvas as a whole, or in the model's own blocks, got {options.block_size}",
                "block_size",
            )

    def _encode(self, text: Any) -> list[int]:
        """Token ids of a text, special tokens spelled in it included, as a chat template's are."""
        if isinstance(text, Chat):
            encoded = self.tokenizer.apply_chat_template(
                text.messages, add_generation_prompt=True, return_dict=True
            )
        elif isinstance(text, str):
            encoded = self.tokenizer(text, add_special_tokens=False)
        else:
            raise InvalidRequest(f"the input must be a text or a chat, got {text!r}", "prompt")
        token_ids: list[int] = encoded["input_ids"]
        return token_ids

    def _decode(self, ids: Tensor) -> str:
        text: str = self.tokenizer.decode(
            ids[0].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _stream(
        self, text: str, options: PipelineOptions, *, by_blocks: bool
    ) -> Generator[str, None, None]:
        sequence = self._prepare(self._encode(text), options, by_blocks=by_blocks)
        for _, state in self._denoise([sequence]):
            yield self._decode(state)

    def _complete(
        self,
        prompts: Sequence[list[int]],
        options: PipelineOptions,
        *,
        by_blocks: bool,
        first: int = 0,
    ) -> list[dict[str, Any]]:
        """Final ids and history of each prompt; prompt i draws with the seed plus first + i."""
        seeds = seeds_of(options.seed, first + len(prompts))[first:]
        sequences = [
            self._prepare(prompt, replace(options, seed=seed), by_blocks=by_blocks)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        history: list[list[Tensor]] = [[] for _ in sequences]
        for index, state in self._denoise(sequences):
            history[index].append(state)
        return [{"final_ids": states[-1], "history": states} for states in history]

    def _denoise(self, sequences: Sequence[_Sequence]) -> Iterator[tuple[int, Tensor]]:
        """(index, ids (1, L)) of a sequence after each step that changed it."""
        index_of = {each.request.request_id: index for index, each in enumerate(sequences)}
        try:
            for sequence in sequences:
                self.engine.add(sequence.request)
            while index_of:
                for frame in self.engine.step():
                    index = index_of.get(frame.request_id)
                    if index is None:
                        continue
                    sequence = sequences[index]
                    sequence.apply(frame)
                    if sequence.has_ended:
                        del index_of[frame.request_id]
                        self.engine.abort(frame.request_id)
                    yield index, sequence.state()
        finally:
            for request_id in index_of:
                self.engine.abort(request_id)

    def _prepare(
        self, prompt: list[int], options: PipelineOptions, *, by_blocks: bool
    ) -> _Sequence:
        """A sequence and its request, checked; nothing is started."""
        params = params_of(options, len(prompt), self.engine.info, by_blocks=by_blocks)
        request = self.engine.prepare(prompt, params)
        stop = {*self._stop_token_ids, *self._stop_token_id(options.stop_token)}
        return _Sequence(request, self._mask_token_id, stop, by_blocks=by_blocks)

    def _stop_token_id(self, stop_token: str | None) -> list[int]:
        if stop_token is None:
            return []
        if stop_token in self._vocabulary:
            return [self._vocabulary[stop_token]]
        token_ids = self._encode(stop_token)
        if len(token_ids) != 1:
            raise InvalidRequest(
                f"stop_token must be one token of the tokenizer, got {stop_token!r}, "
                f"which is {len(token_ids)}",
                "stop_token",
            )
        return token_ids


class _Sequence:
    """A prompt and its answer while it forms.

    Args:
        stop_token_ids: the answer ends before the first of them, once it has settled.
        by_blocks: states end with the block that is being denoised.
    """

    def __init__(
        self, request: Request, mask_token_id: int, stop_token_ids: set[int], *, by_blocks: bool
    ) -> None:
        self.request = request
        self.has_ended = False
        self._stop_token_ids = stop_token_ids
        self._mask_token_id = mask_token_id
        self._start = self._end = len(request.prompt)
        self._settled = self._start
        self._ids = [*request.prompt, *[mask_token_id] * request.params.max_tokens]
        blocks = list(request.blocks.spans_from(self._start))
        self._ends = [end for _, end in blocks] if by_blocks else [len(self._ids)] * len(blocks)

    def apply(self, frame: Frame) -> None:
        """Fill in what a step committed; raises EngineFailure when it failed."""
        if frame.finish_reason is FinishReason.ERROR:
            raise EngineFailure(frame.error or "the engine failed")
        for position, token_id in frame.tokens:
            self._ids[self._start + position] = token_id
        for position in frame.remasked:
            self._ids[self._start + position] = self._mask_token_id
        self._end = self._ends[frame.block]
        self.has_ended = frame.finish_reason is not None
        settled = self._start + frame.settled
        for position in range(self._settled, settled):
            if self._ids[position] in self._stop_token_ids:
                self._end, self.has_ended = position, True
                break
        self._settled = settled

    def state(self) -> Tensor:
        """Ids (1, L) as they stand."""
        return torch.tensor([self._ids[: self._end]], dtype=torch.long)


PIPELINE_REGISTRY.register_pipeline(TASK, TextDiffusionPipeline, type="text")
