"""The question in a prompt, whatever tokenizer and chat template wrote it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from foveate.attach.prompt import Prompt, Template
from foveate.prompting import transcript

_WORDS = "how many cats what colour is the cat ? red user assistant you help USER: ASSISTANT: two"
_TURNS = (
    "{% for m in messages %}{{ HEAD[m['role']] }}{% for c in m['content'] %}"
    "{{ c['text'] if c['type'] == 'text' else PICTURE }}{% endfor %}{{ TAIL[m['role']] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ NEXT }}{% endif %}"
)


def _template(begin: str, head: dict[str, str], tail: dict[str, str], answer: str) -> str:
    return (
        f"{{% set HEAD = {head!r} %}}{{% set TAIL = {tail!r} %}}{{% set PICTURE = '<image>\\n' %}}"
        f"{{% set NEXT = {answer!r} %}}" + repr(begin).join(("{{ ", " }}")) + _TURNS
    )


SAYS = {"user": "USER: ", "assistant": "ASSISTANT: "}
LLAVA = _template("", SAYS, {"user": " ", "assistant": "</s>"}, "ASSISTANT:")
VICUNA = _template("You help. ", SAYS, {"user": "\n", "assistant": "\n"}, "ASSISTANT:")
CHATML = _template(
    "<|im_start|>system\nYou help.<|im_end|>\n",
    {"user": "<|im_start|>user\n", "assistant": "<|im_start|>assistant\n"},
    {"user": "<|im_end|>\n", "assistant": "<|im_end|>\n"},
    "<|im_start|>assistant\n",
).replace("'<image>\\n'", "'<|open|><image><|close|>'")
INSTRUCT = {"user": "[INST]", "assistant": ""}
MISTRAL = _template("<s>", INSTRUCT, {"user": "[/INST]", "assistant": "</s>"}, "")
SPECIAL = ["<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<|open|>", "<|close|>"]


def _pieces() -> Tokenizer:
    """As Llama's: a word begins with its space, and so does every text."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def _bytes() -> Tokenizer:
    """As GPT's, Qwen's and Llama 3's: bytes, white space included."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _trained(made: Tokenizer, template: str) -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet() if made.pre_tokenizer else []
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", *SPECIAL], initial_alphabet=alphabet
    )
    made.train_from_iterator([_WORDS, f"{_WORDS} [INST] [/INST] \n"] * 8, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def _asked(tokenizer: Any, text: str) -> str:
    """What is taken for the question of a prompt."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])[None]
    visual = (ids[0] == tokenizer.convert_tokens_to_ids("<image>")).nonzero().flatten().tolist()
    prompt = Prompt(ids, torch.ones_like(ids, dtype=torch.bool))
    found = prompt.question(0, visual, Template(tokenizer))
    return str(tokenizer.decode(ids[0, found])).strip()


@pytest.mark.parametrize("template", [LLAVA, VICUNA, CHATML, MISTRAL], ids=range(4))
@pytest.mark.parametrize("made", [_pieces, _bytes])
def test_it_is_what_the_user_says_in_the_last_turn(made: Any, template: str) -> None:
    tokenizer = _trained(made(), template)
    first, second = "what colour is the cat ?", "how many cats ?"
    assert _asked(tokenizer, transcript(tokenizer, [(first, 1)])) == first
    assert _asked(tokenizer, transcript(tokenizer, [(first, 1), (second, 0)], ["red"])) == second
    assert _asked(tokenizer, transcript(tokenizer, [(first, 0), (second, 1)], ["red"])) == second


@pytest.mark.parametrize("template", [LLAVA, VICUNA, CHATML, MISTRAL], ids=range(4))
@pytest.mark.parametrize("made", [_pieces, _bytes])
def test_it_may_stand_before_the_picture(made: Any, template: str) -> None:
    tokenizer = _trained(made(), template)
    text = transcript(tokenizer, [("what colour is the cat ?<image>", 0)])
    assert _asked(tokenizer, text) == "what colour is the cat ?"


def test_all_text_counts_where_the_template_is_not_there() -> None:
    tokenizer = _trained(_bytes(), CHATML)
    assert _asked(tokenizer, "<image>what colour is the cat ?") == "what colour is the cat ?"
    tokenizer.chat_template = None
    assert _asked(tokenizer, "<image>user the cat ?") == "user the cat ?"
