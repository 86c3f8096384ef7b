"""A vision-language model as a judge: a tiny LLaVA of random weights, against transformers' own calls."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miga.backbones.vision_language import VisionLanguageModel
from miga.errors import ModelError
from pipeline.evaluation.model_judge import ModelJudge
from pipeline.evaluation.narrlv_run import as_jpeg
from pipeline.evaluation.vision_judge import JudgeFailedError

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
WORDS = ["system", "user", "assistant", "yes", "no", "You", "are", "a", "helpful", "Is", "it", "day", "?", "Answer"]
DRAWN = {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05, "max_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("judge")
    names = ["<pad>", "<unk>", "</s>", "<image>", *WORDS]
    core = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, extra_special_tokens={"image_token": "<image>"}, **special
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, image_token="<image>", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                       num_attention_heads=2, image_size=28, patch_size=14),
        text_config=LlamaConfig(vocab_size=len(names), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                num_attention_heads=2, num_key_value_heads=2, eos_token_id=2, pad_token_id=0),
        image_token_index=3,
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> VisionLanguageModel:
    return VisionLanguageModel(str(folder), "cpu")


def frames(shade: int, count: int = 3) -> list[np.ndarray]:
    return [np.full((32, 40, 3), shade + 40 * number, np.uint8) for number in range(count)]


def ask(model: VisionLanguageModel, shade: int = 10, seed: int = 0, **changes: Any) -> str:
    return model.answer(frames(shade), "Is it day ?", system="You are a helpful", seed=seed, **(DRAWN | changes))


def test_the_answer_is_what_transformers_would_say(model: VisionLanguageModel, folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(folder)
    network: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    text = "system You are a helpful user <image> <image> <image> Is it day ? assistant"
    inputs = processor(text=text, images=frames(10), return_tensors="pt")
    assert int((inputs["input_ids"] == 3).sum()) == 3 * 4
    torch.manual_seed(5)
    with torch.inference_mode():
        tokens = network.generate(**inputs, do_sample=True, temperature=0.7, top_p=0.8, repetition_penalty=1.05,
                                  max_new_tokens=6)  # fmt: skip
    wanted = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert ask(model, seed=5) == wanted


def test_answers_are_drawn_by_their_seed(model: VisionLanguageModel) -> None:
    state = torch.random.get_rng_state()
    said = [ask(model, seed=seed) for seed in range(6)]
    assert said == [ask(model, seed=seed) for seed in range(6)]
    assert len(set(said)) > 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert ask(model, seed=1, temperature=0.0) == ask(model, seed=2, temperature=0.0)


def test_it_is_a_judge(model: VisionLanguageModel) -> None:
    judge = ModelJudge(model)
    jpegs = [as_jpeg(frame) for frame in frames(10)]
    assert judge.at_once == 1
    assert judge.ask(jpegs, "Is it day ?", 0) == judge.ask(jpegs, "Is it day ?", 0)
    assert len({judge.ask(jpegs, "Is it day ?", sample) for sample in range(6)}) > 1


def test_a_model_that_fails_fails_that_question() -> None:
    class Failing:
        name = "x"

        def answer(self, *frames: Any, **options: Any) -> str:
            raise RuntimeError("CUDA out of memory")

    with pytest.raises(JudgeFailedError, match="out of memory"):
        ModelJudge(Failing()).ask([], "Is it?", 0)


@pytest.mark.parametrize("lacking", ["model.safetensors", "config.json", "chat_template.jinja", "tokenizer.json"])
def test_a_folder_that_is_no_judge(folder: Path, tmp_path: Path, lacking: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / lacking).unlink()
    with pytest.raises(ModelError):
        VisionLanguageModel(str(copy), "cpu")


def test_weights_of_another_network(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"do not fit its config\.json"):
        VisionLanguageModel(str(copy), "cpu")
